"""Where a convolution looks."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

__all__ = ["Window"]


class Window(NamedTuple):
    """A window that slides over images: one entry of each for every spatial dimension.

    Attributes:
        kernel: Its size.
        stride: How far it moves from one position to the next.
        padding: How far it begins before an image.
        dilation: Distance of its elements.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

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
        reach = self.reach(positions)
        pads = []
        for before, size, whole in zip(self.padding, images.shape[2:], reach, strict=True):
            pads = [before, max(0, whole - before - size), *pads]
        images = F.pad(images, pads) if any(pads) else images
        for d, size in enumerate(reach, start=2):
            images = images.narrow(d, 0, size)  # what lies behind the last window
        return images

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
            first = k * self.dilation[d] - self.padding[d]
            start = max(0, -(first // stride))
            stop = min(positions, (pixels - 1 - first) // stride + 1)
            if start < stop:
                of = slice(start * stride + first, (stop - 1) * stride + first + 1, stride)
                yield slice(start, stop), of


def _twice(part: slice, d: int, dims: int) -> tuple[slice, ...]:
    """Index of a part of dimension d both times that it occurs."""
    index = [slice(None)] * (2 * dims + 1)
    index[1 + d] = index[1 + dims + d] = part
    return tuple(index)
