"""Gradients of a convolution's weight: sums over positions of a patch times a vector."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from memtools.gradients.outer import (
    PASS,
    SCRATCH,
    direct_cost,
    gram_cost,
    in_chunks,
    join,
    lost_to_cancellation,
    outer_squares,
    row_squares,
    split,
    wide,
)
from memtools.gradients.pieces import Outer, Piece

__all__ = ["Patches", "Window"]


@dataclass(frozen=True)
class Window:
    """Where a convolution looks: one entry for each spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]

    @property
    def is_pixel(self) -> bool:
        """Whether every pixel is a patch."""
        return prod(self.kernel) == prod(self.stride) == 1

    def reach(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial shape of what so many windows see."""
        sizes = zip(positions, self.stride, self.kernel, self.dilation, strict=True)
        return tuple((p - 1) * s + (k - 1) * d + 1 for p, s, k, d in sizes)

    def pad(self, images: Tensor, positions: tuple[int, ...]) -> Tensor:
        """Images ``(b, C, *spatial)`` with their margins, as far as so many windows reach."""
        pads = []
        sizes = zip(self.margins, self.reach(positions), images.shape[2:], strict=True)
        for (before, _), reach, size in sizes:
            pads = [before, reach - before - size, *pads]
        return F.pad(images, pads) if any(pads) else images

    def patches(self, images: Tensor) -> Tensor:
        """Padded images ``(b, C, *spatial)`` as ``(b, C * kernel, positions)``."""
        dims = len(self.kernel)
        if self.is_pixel:
            return images.flatten(2)
        for d in range(dims):
            span = (self.kernel[d] - 1) * self.dilation[d] + 1
            images = images.unfold(2 + d, span, self.stride[d])[..., :: self.dilation[d]]
        kernel_first = images.movedim(
            tuple(range(2 + dims, 2 + 2 * dims)), tuple(range(2, 2 + dims))
        )
        return kernel_first.flatten(1, 1 + dims).flatten(2)

    def sum_of_shifts(
        self, products: Tensor, pixels: tuple[int, ...], positions: tuple[int, ...]
    ) -> Tensor:
        """Inner products of pixels ``(b, Q, Q)`` to those of patches ``(b, P, P)``.

        Two patches meet in the pixels at the same offset from both, one dimension after the other.
        """
        dims = len(pixels)
        products = products.view(-1, *pixels, *pixels)
        for d in range(dims):
            overlaps = list(self._overlaps(d, pixels[d], positions[d]))
            everything = slice(0, positions[d]), slice(0, pixels[d], self.stride[d])
            if overlaps == [everything] and pixels[d] == positions[d]:
                continue
            shape = list(products.shape)
            shape[1 + d] = shape[1 + dims + d] = positions[d]
            total = products.new_zeros(shape)
            for patches, pixel in overlaps:
                total[_twice(patches, d, dims)] += products[_twice(pixel, d, dims)]
            products = total
        return products.reshape(len(products), prod(positions), prod(positions))

    def _overlaps(self, d: int, pixels: int, positions: int) -> Iterator[tuple[slice, slice]]:
        """For each offset in the window: which positions have a pixel there, and which pixels."""
        stride = self.stride[d]
        for k in range(self.kernel[d]):
            first = k * self.dilation[d] - self.margins[d][0]
            start = max(0, -(first // stride))
            stop = min(positions, (pixels - 1 - first) // stride + 1)
            if start < stop:
                of = slice(start * stride + first, (stop - 1) * stride + first + 1, stride)
                yield slice(start, stop), of


def _twice(part: slice, d: int, dims: int) -> tuple[slice, ...]:
    """Index of a part of dimension d of both of two sets of pixels."""
    index = [slice(None)] * (2 * dims + 1)
    index[1 + d] = index[1 + dims + d] = part
    return tuple(index)


UNFOLD = 48
"""Cost of an element of a patch that is copied, in multiply-adds of a matrix product."""


def _alone(kernel: int) -> int:
    """Cost of a multiply-add of a convolution whose channels do not mix, in the same."""
    return 12 if kernel <= 9 else 64


@dataclass(frozen=True)
class Patches(Piece):
    """The gradients of a convolution's weight.

    Attributes:
        images: What the windows slide over: ``(n, C, *spatial)``, or ``(n, repeats, C, *spatial)``.
        vectors: What they meet at each position: ``(n, O, *positions)``, likewise.
        window: The windows.
        groups: Blocks of the weight.
        repeats: Images of each example.
    """

    images: Tensor
    vectors: Tensor
    window: Window
    groups: int
    repeats: int

    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``."""
        images, vectors = self._by_block(self.images), self._by_block(self.vectors)
        channels, width, positions = images.shape[2], vectors.shape[2], prod(vectors.shape[3:])
        pixels, kernel = prod(images.shape[3:]), prod(self.window.kernel)
        patch, largest = channels * kernel, max(pixels, positions) ** 2
        alone = channels * width == 1
        costs = {
            self._by_kernel: direct_cost(positions, width, patch)
            * (_alone(kernel) if alone else 1),
            self._by_patches: UNFOLD * patch * positions * (not self.window.is_pixel)
            + min(direct_cost(positions, width, patch), gram_cost(positions, width, patch)),
        }
        if self.repeats == 1 and largest <= 4 * SCRATCH:
            shifts = PASS * sum(self.window.kernel) * largest
            inner = pixels**2 * channels + gram_cost(positions, width, 0)
            costs[self._by_pixels] = shifts + inner
        squares = min(costs, key=lambda way: costs[way])(images, vectors)
        return squares if self.groups == 1 else squares.view(-1, self.groups).sum(1)

    def outer(self) -> Outer:
        """The patches themselves, a position each, for a weight that is used more than once."""
        images, vectors = self._by_block(self.images), self._by_block(self.vectors)
        return Outer(_by_position(vectors), self._patches(images, vectors), self.groups)

    def _by_block(self, tensor: Tensor) -> Tensor:
        """As ``(n * groups, repeats, C / groups, *spatial)``."""
        tensor = tensor if self.repeats > 1 else tensor[:, None]
        return tensor.unflatten(2, (self.groups, -1)).movedim(2, 1).flatten(0, 1)

    def _patches(self, images: Tensor, vectors: Tensor) -> Tensor:
        """``(blocks, repeats * positions, C * kernel)``."""
        padded = self.window.pad(images.flatten(0, 1), tuple(vectors.shape[3:]))
        patches = self.window.patches(wide(padded)).unflatten(0, images.shape[:2])
        return patches.movedim(1, 2).flatten(2).mT

    def _by_kernel(self, images: Tensor, vectors: Tensor) -> Tensor:
        """The gradients themselves, by PyTorch's own operator: one group for each block."""
        channels, width = images.shape[2], vectors.shape[2]
        spatial = tuple(vectors.shape[3:])
        total = []
        for image, vector in in_chunks(
            channels * width * prod(self.window.kernel), images, vectors
        ):
            x = self.window.pad(image.movedim(1, 0).flatten(1, 2), spatial)
            gradient = torch.ops.aten.convolution_backward(
                vector.movedim(1, 0).flatten(1, 2), x,
                x.new_empty(len(image) * width, channels, *self.window.kernel),
                None, self.window.stride, [0] * len(spatial), self.window.dilation,
                False, [0] * len(spatial), len(image), [False, True, False],
            )[1]  # fmt: skip
            total.append(row_squares(gradient.view(len(image), -1)))
        return join(total)

    def _by_patches(self, images: Tensor, vectors: Tensor) -> Tensor:
        _, repeats, channels = images.shape[:3]
        each = prod(vectors.shape[3:]) * prod(self.window.kernel) * repeats
        # Where one block is too much, its channels go in bands: their squares add up.
        band = max(1, SCRATCH // max(1, each))
        total = []
        for image, vector in in_chunks(each * channels, images, vectors):
            rows = _by_position(vector)
            bands = split(image, band, dim=2)
            total.append(sum(outer_squares(rows, self._patches(b, vector)) for b in bands))
        return join(total)

    def _by_pixels(self, images: Tensor, vectors: Tensor) -> Tensor:
        """The Gram form, from inner products of pixels: no patch is ever formed."""
        pixels, positions = tuple(images.shape[3:]), tuple(vectors.shape[3:])
        total, terms = [], []
        for image, vector in in_chunks(prod(pixels) ** 2, images, vectors):
            a, b = image.flatten(0, 1).flatten(2), vector.flatten(0, 1).flatten(2)
            products = self.window.sum_of_shifts(torch.bmm(a.mT, a), pixels, positions)
            products.mul_(torch.bmm(b.mT, b))
            total.append(products.flatten(1).sum(1))
            terms.append(products.diagonal(dim1=1, dim2=2).sum(1))
        squares = join(total)
        lost = lost_to_cancellation(squares, join(terms))
        if len(lost):
            squares[lost] = self._by_patches(images[lost], vectors[lost])
        return squares


def _by_position(vectors: Tensor) -> Tensor:
    """``(blocks, repeats, O, *positions)`` as ``(blocks, repeats * positions, O)``."""
    return vectors.flatten(3).movedim(1, 2).flatten(2).mT
