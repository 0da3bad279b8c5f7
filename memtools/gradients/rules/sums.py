"""Sums over the positions of an example, in pieces that stay in the cache."""

from collections.abc import Callable

from memtools_kernels.chunks import in_chunks, join
from torch import Tensor

__all__ = ["free_dims", "reduce_to"]


def free_dims(aligned: tuple[int, ...]) -> list[int]:
    """Dimensions in which a weight is broadcast, so that examples may be there."""
    return [d for d, size in enumerate(aligned) if size == 1]


CACHED = 2**16
"""Elements that several passes go over, one after the other: these stay in the second cache."""


def reduce_to(
    shape: tuple[int, ...],
    gradient: Tensor,
    operand: Tensor,
    factor: Callable[[Tensor], Tensor | float],
) -> Tensor:
    """Sum of ``gradient * factor(operand)`` over the dimensions in which a weight is broadcast.

    Args:
        shape: Shape of the weight, with a 1 for each dimension in which it is broadcast.
        gradient: Shape ``(n, ...)``, the rest of as many dimensions as ``shape``.
        operand: Shape of ``gradient``.
        factor: Elementwise, or within the dimensions of the weight.

    Returns:
        Shape ``(n, *shape)``, float32 or wider.
    """
    summed = [d for d, size in enumerate(shape, start=1) if size == 1 and gradient.shape[d] > 1]
    sums = []
    for part, x in in_chunks(gradient[0].numel(), gradient, operand, limit=CACHED):
        by = factor(x)
        product = part if isinstance(by, float) and by == 1 else part * by
        sums.append(product.sum(summed, keepdim=True) if summed else product)
    return join(sums)
