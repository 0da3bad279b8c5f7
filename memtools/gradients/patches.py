"""Gradients of a convolution's weight: sums over positions of a patch times a vector."""

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
        """Inner products of pixels ``(b, Q, Q)`` to those of patches ``(b, P, P)``."""
        dims = len(pixels)
        products = products.view(-1, *pixels, *pixels)
        for d in range(dims):
            total = None
            for offset in range(0, self.kernel[d] * self.dilation[d], self.dilation[d]):
                stop = offset + (positions[d] - 1) * self.stride[d] + 1
                steps = slice(offset, stop, self.stride[d])
                index = [slice(None)] * (2 * dims + 1)
                index[1 + d] = index[1 + dims + d] = steps
                shifted = products[tuple(index)]
                total = shifted.clone() if total is None else total.add_(shifted)
            assert total is not None
            products = total
        return products.reshape(len(products), prod(positions), prod(positions))


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

    form = "patches"

    images: Tensor
    vectors: Tensor
    window: Window
    groups: int
    repeats: int

    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``."""
        images, vectors = self._by_block(self.images), self._by_block(self.vectors)
        spatial = tuple(vectors.shape[4:])
        channels, width, positions = images.shape[3], vectors.shape[3], prod(spatial)
        patch = channels * prod(self.window.kernel)
        pixels = prod(self.window.reach(spatial))
        outer = min(direct_cost(positions, width, patch), gram_cost(positions, width, patch))
        by_patches = outer + (0 if self.window.is_pixel else PASS * patch * positions)
        by_pixels = pixels**2 * (channels + PASS * sum(self.window.kernel))
        by_pixels += gram_cost(positions, width, 0)
        if self.repeats == 1 and by_pixels < by_patches and pixels**2 <= 4 * SCRATCH:
            return self._by_pixels(images[:, 0], vectors[:, 0])
        return self._by_patches(images, vectors)

    def outer(self) -> Outer:
        """The patches themselves, a position each, for a weight that is used more than once."""
        images, vectors = self._by_block(self.images), self._by_block(self.vectors)
        return Outer(_vectors(vectors), self._patches(images, vectors), self.groups)

    def _per_example(self, chunks: list[Tensor]) -> Tensor:
        blocks = join(chunks)
        return blocks if self.groups == 1 else blocks.view(-1, self.groups).sum(1)

    def _by_block(self, tensor: Tensor) -> Tensor:
        """As ``(n, repeats, groups, C / groups, *spatial)``."""
        tensor = tensor if self.repeats > 1 else tensor[:, None]
        return tensor.unflatten(2, (self.groups, -1))

    def _patches(self, images: Tensor, vectors: Tensor) -> Tensor:
        """``(n * groups, repeats * positions, C * kernel)``."""
        n, repeats, groups = images.shape[:3]
        padded = self.window.pad(images.flatten(0, 2), tuple(vectors.shape[4:]))
        patches = self.window.patches(wide(padded)).unflatten(0, (n, repeats, groups))
        return patches.movedim(1, 3).flatten(3).flatten(0, 1).mT

    def _by_patches(self, images: Tensor, vectors: Tensor) -> Tensor:
        _, repeats, groups, channels = images.shape[:4]
        each = prod(vectors.shape[4:]) * prod(self.window.kernel) * repeats * groups
        # Where one example is too much, its channels go in bands: their squares add up.
        band = max(1, SCRATCH // each)
        total = []
        for image, vector in in_chunks(each * channels, images, vectors):
            rows = _vectors(vector)
            bands = split(image, band, dim=3)
            total.append(sum(outer_squares(rows, self._patches(b, vector)) for b in bands))
        return self._per_example(total)

    def _by_pixels(self, images: Tensor, vectors: Tensor) -> Tensor:
        """The Gram form, from inner products of pixels: no patch is ever formed."""
        spatial = tuple(vectors.shape[3:])
        reach = self.window.reach(spatial)
        total, terms = [], []
        for image, vector in in_chunks(self.groups * prod(reach) ** 2, images, vectors):
            pixels = self.window.pad(image.flatten(0, 1), spatial).flatten(2)
            b = vector.flatten(0, 1).flatten(2)
            products = self.window.sum_of_shifts(torch.bmm(pixels.mT, pixels), reach, spatial)
            products.mul_(torch.bmm(b.mT, b))
            total.append(products.flatten(1).sum(1))
            terms.append(products.diagonal(dim1=1, dim2=2).sum(1))
        squares = self._per_example(total)
        lost = lost_to_cancellation(squares, self._per_example(terms))
        if len(lost):
            squares[lost] = self._by_patches(images[lost, None], vectors[lost, None])
        return squares


def _vectors(vectors: Tensor) -> Tensor:
    """``(n, repeats, groups, O, *positions)`` as ``(n * groups, repeats * positions, O)``."""
    return vectors.flatten(4).movedim(1, 3).flatten(3).flatten(0, 1).mT
