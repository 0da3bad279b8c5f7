"""Frobenius norms of sums of outer products, one sum for each example.

The gradient of a linear layer's weight is ``sum_t b_t a_t^T`` over the positions t of an example.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "PASS",
    "SCRATCH",
    "direct_cost",
    "gram_cost",
    "in_chunks",
    "join",
    "lost_to_cancellation",
    "outer_squares",
    "row_squares",
    "split",
    "wide",
]

SCRATCH = 2**20
"""Elements of a temporary: it stays in the cache, and its memory does not grow with the batch."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or wider."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


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
    double = any(t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if double else torch.float32
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


def row_squares(tensor: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension, shape ``(n,)``, in float32 or wider."""
    rows = tensor.reshape(len(tensor), -1)
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    width = rows.shape[1]
    if width <= RUN:
        return torch.linalg.vector_norm(rows, dim=1, dtype=dtype).square_()
    # The norm of a long row loses digits, a sum of short ones does not.
    whole = width - width % RUN
    runs = rows[:, :whole].unflatten(1, (-1, RUN))
    squares = torch.linalg.vector_norm(runs, dim=2, dtype=dtype).square_().sum(1)
    return squares if whole == width else squares + row_squares(rows[:, whole:])


RUN = 4096
"""Elements that are added one by one."""


def outer_squares(rows: Tensor, columns: Tensor) -> Tensor:
    r"""Squared Frobenius norm of the sum of outer products of each example.

    .. math:: s_i = \lVert \sum_t r_{it} c_{it}^\top \rVert_F^2
                  = \sum_{tu} (r_{it} \cdot r_{iu}) (c_{it} \cdot c_{iu})

    The first form costs ``T R C`` operations, the second ``T^2 (R + C)``; the cheaper one is taken.
    The second cancels where the sum is far smaller than its terms; examples for which that would
    cost digits are redone by the first.

    Args:
        rows: Shape ``(n, T, R)``.
        columns: Shape ``(n, T, C)``.

    Returns:
        Shape ``(n,)``, float32 or wider.
    """
    _, positions, r = rows.shape
    c = columns.shape[2]
    if positions <= 1 or r * c == 0:
        if positions * r * c == 0:
            return row_squares(rows[:, :0])
        return row_squares(rows) * row_squares(columns)
    if direct_cost(positions, r, c) <= gram_cost(positions, r, c):
        return _direct(rows, columns)
    return _gram(rows, columns)


# In multiply-adds of a matrix product; an element that is written and read again costs as much as
# PASS of them.
PASS = 16


def direct_cost(positions: int, r: int, c: int) -> int:
    """Of forming the sums of one example, ``(R, C)``, and their norm."""
    return (positions + PASS) * r * c


def gram_cost(positions: int, r: int, c: int) -> int:
    """Of forming all inner products of rows, and of columns, of one example."""
    # Products of few rows keep the processor less busy than those of many.
    return (r + c + 2 * PASS) * positions**2 * 7 // 5


def _direct(rows: Tensor, columns: Tensor) -> Tensor:
    r, c = rows.shape[2], columns.shape[2]
    band = max(1, SCRATCH // max(1, c))
    total = []
    for row, column in in_chunks(r * c, rows, columns):
        bands = (torch.bmm(part.mT, column) for part in split(row, band, dim=2))
        total.append(sum(row_squares(b) for b in bands))
    return join(total)


def _gram(rows: Tensor, columns: Tensor) -> Tensor:
    positions = rows.shape[1]
    band = max(1, SCRATCH // positions)
    total, terms = [], []
    for row, column in in_chunks(positions**2, rows, columns):
        sums, diagonals = 0, 0
        for start in range(0, positions, band):
            stop = start + band
            products = torch.bmm(row[:, start:stop], row.mT)
            products.mul_(torch.bmm(column[:, start:stop], column.mT))
            sums = sums + products.flatten(1).sum(1)
            diagonals = diagonals + products.diagonal(start, dim1=1, dim2=2).sum(1)
        total.append(sums)
        terms.append(diagonals)
    squares, terms = join(total), join(terms)
    lost = lost_to_cancellation(squares, terms)
    if len(lost):
        squares[lost] = _direct(rows[lost], columns[lost])
    return squares


def lost_to_cancellation(squares: Tensor, diagonals: Tensor) -> Tensor:
    """Which Gram sums are too small beside their diagonals to be trusted.

    The matrix of products is positive semi-definite, so that its entries' rounding errors add up to
    less than about eps times its trace. Below an eighth of the trace, three bits of the sum are
    lost.
    """
    return (squares < diagonals / 8).nonzero().flatten()
