"""How the references keep their temporaries in the cache: a few examples at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from memtools_kernels.backend import accumulator

__all__ = ["SCRATCH", "in_chunks", "join", "split"]

SCRATCH = 2**20
"""Elements of a temporary: it stays in the cache, and its memory does not grow with the batch."""


def in_chunks(
    elements: int, *tensors: Tensor, limit: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """The examples of some tensors, in float32 or wider, a few at a time.

    Args:
        elements: Elements of the temporary that one example will need.
        tensors: Their first dimensions are equal.
        limit: Elements of all temporaries together; ``None`` is ``SCRATCH``.
    """
    size = max(1, (SCRATCH if limit is None else limit) // max(1, elements))
    dtypes = [accumulator(t.dtype) for t in tensors]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    if size >= len(tensors[0]):
        yield tuple(t.to(dtype) for t in tensors)
        return
    for parts in zip(*(t.split(size) for t in tensors), strict=True):
        yield tuple(part.to(dtype) for part in parts)


def join(parts: list[Tensor]) -> Tensor:
    """What the chunks gave, for all examples."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def split(tensor: Tensor, size: int, dim: int) -> Sequence[Tensor]:
    """As ``Tensor.split``, which takes its time where there is nothing to split."""
    return (tensor,) if tensor.shape[dim] <= size else tensor.split(size, dim)
