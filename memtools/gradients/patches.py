"""Gradients of a convolution's weight: sums over positions of a patch times a vector."""

from dataclasses import dataclass

from memtools_kernels import patch_norms
from memtools_kernels.patch_norms import by_position, patches_of
from memtools_kernels.windows import Window
from torch import Tensor

from memtools.gradients.pieces import Outer, Piece

__all__ = ["Patches", "Window"]


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
        kernel, stride, padding, dilation = self.window
        return patch_norms(
            self.images, self.vectors, kernel_size=kernel, stride=stride, padding=padding,
            dilation=dilation, groups=self.groups,
        )  # fmt: skip

    def outer(self) -> Outer:
        """The patches themselves, a position each, for a weight that is used more than once."""
        images, vectors = self._by_block(self.images), self._by_block(self.vectors)
        columns = patches_of(images, tuple(vectors.shape[3:]), self.window)
        return Outer(by_position(vectors), columns, self.groups)

    def _by_block(self, tensor: Tensor) -> Tensor:
        """As ``(n * groups, repeats, C / groups, *spatial)``."""
        tensor = tensor if self.repeats > 1 else tensor[:, None]
        return tensor.unflatten(2, (self.groups, -1)).movedim(2, 1).flatten(0, 1)
