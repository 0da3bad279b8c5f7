"""Operator ``memtools::row_norms``: the L1, L2 or maximum norm of every row, in one read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memtools_kernels.arguments import check_dense
from memtools_kernels.backend import DTYPES, HAS_TRITON, INTERPRET, ends_in_reference, jit

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_TILE = 2048  # elements a program holds at once
_STEPS = 8  # tiles a program walks through
_RUN = 1024  # squares the reference adds one by one
_CACHED = 1 << 16  # elements it takes absolute values of at once


# 1. Reference: the specification, and what runs wherever the kernel does not.
def row_norms_reference(xs: Sequence[Tensor], p: float, squared: bool) -> Tensor:
    """Compute `row_norms` in plain PyTorch, on any device."""
    dtype = _accumulator(xs)
    norms = [_norms_of_rows(x.reshape(len(x), -1), p, dtype) for x in xs if x.numel()]
    if not norms:
        return _zeros(xs)
    if len(norms) > 1:
        norms = [_norms_of_rows(torch.stack(norms, 1), p, dtype)]
    return norms[0].square_() if squared else norms[0]


def _norms_of_rows(rows: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    if p == 2:
        return _root_of_squares(rows, dtype)
    if rows.numel() > 16 * _CACHED:
        return _in_cache(rows, p, dtype)
    sizes = rows.abs().to(dtype)
    return sizes.sum(1) if p == 1 else sizes.amax(1)


def _root_of_squares(rows: Tensor, dtype: torch.dtype) -> Tensor:
    n_cols = rows.shape[1]
    if n_cols <= _RUN:
        return torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    # In float32 its result drifts by 2e-5 over a million elements, by next to nothing over a few.
    whole = n_cols - n_cols % _RUN
    runs = rows[:, :whole].unflatten(1, (-1, _RUN))
    norms = torch.linalg.vector_norm(runs, dim=2, dtype=dtype)
    if whole < n_cols:
        norms = torch.cat([norms, _root_of_squares(rows[:, whole:], dtype)[:, None]], 1)
    return _root_of_squares(norms, dtype)


def _in_cache(rows: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """The L1 or the maximum norm, by absolute values that never leave the cache."""
    n_rows, n_cols = rows.shape
    width = min(n_cols, _CACHED)
    height = min(n_rows, _CACHED // width)
    parts = -(-n_cols // width)
    norms = rows.new_empty((n_rows, parts), dtype=dtype)
    scratch = rows.new_empty((height, width), dtype=dtype)
    for part, columns in enumerate(rows.split(width, 1)):
        for top in range(0, n_rows, height):
            block = columns[top : top + height]
            sizes = scratch[: len(block), : block.shape[1]].copy_(block).abs_()
            norms[top : top + height, part] = sizes.sum(1) if p == 1 else sizes.amax(1)
    if parts == 1:
        return norms[:, 0]
    return norms.sum(1) if p == 1 else norms.amax(1)


def _accumulator(xs: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32


def _zeros(xs: Sequence[Tensor]) -> Tensor:
    return xs[0].new_zeros(len(xs[0]), dtype=_accumulator(xs))


# 2. Kernel: a program owns ROWS rows times one part of their columns, STEPS tiles of COLS.
@jit
def _row_norms_kernel(
    x_ptr, out_ptr, n_rows, n_cols, stride_row, stride_col, n_parts, out_stride_row,
    P: tl.constexpr, ROOT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    part = program % n_parts
    rows = program // n_parts * ROWS + tl.arange(0, ROWS)[:, None]
    acc = tl.zeros((ROWS, COLS), out_ptr.dtype.element_ty)
    for step in range(STEPS):
        cols = (part * STEPS + step) * COLS + tl.arange(0, COLS)[None, :]
        offsets = rows * stride_row + cols * stride_col
        x = tl.load(x_ptr + offsets, mask=(rows < n_rows) & (cols < n_cols), other=0.0)
        x = tl.abs(x.to(acc.dtype))
        if P == 1:
            acc += x
        elif P == 2:
            acc += x * x
        else:
            acc = _larger(acc, x)
    if P == 1:
        norms = tl.sum(acc, axis=1, keep_dims=True)
        if not ROOT:
            norms = norms * norms
    elif P == 2:
        norms = tl.sum(acc, axis=1, keep_dims=True)
        if ROOT:
            # Rounded correctly; tl.sqrt is so only in float64, and flushes subnormal sums to 0.
            norms = tl.sqrt(norms) if acc.dtype == tl.float64 else tl.sqrt_rn(norms)
    else:
        norms = tl.reduce(acc, 1, _larger, keep_dims=True)  # tl.max drops NaN
        if not ROOT:
            norms = norms * norms
    tl.store(out_ptr + rows * out_stride_row + part, norms, mask=rows < n_rows)


@jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _row_norms_triton(xs: Sequence[Tensor], p: float, squared: bool) -> Tensor:
    launches = [_plan(x) for x in xs if x.numel()]
    if not launches:
        return _zeros(xs)
    n_rows, total = len(xs[0]), sum(launch.n_parts for launch in launches)
    norms = xs[0].new_empty((n_rows, total), dtype=_accumulator(xs))
    begin = 0
    for x, n_parts, rows, cols, steps in launches:
        grid = (triton.cdiv(n_rows, rows) * n_parts,)
        args: list[Any] = [x, norms[:, begin:], n_rows, x.shape[1], *x.stride(), n_parts, total]
        meta: dict[str, Any] = {"P": p, "ROOT": total > 1 or not squared}
        meta |= {"ROWS": rows, "COLS": cols, "STEPS": steps, "num_warps": 4}
        _row_norms_kernel[grid](*args, **meta)
        begin += n_parts
    # The norm of a row is the norm of the norms of its parts.
    return norms.squeeze(1) if total == 1 else _row_norms_triton([norms], p, squared)


class _Launch(NamedTuple):
    matrix: Tensor
    n_parts: int
    rows: int
    cols: int
    steps: int


def _plan(x: Tensor) -> _Launch:
    # A norm does not mind the order of its elements: with the trailing dimensions sorted by stride,
    # channels-last is read in place. `reshape` copies what still is not one strided dimension.
    trailing = sorted(range(1, x.ndim), key=x.stride, reverse=True)
    x = x.permute(0, *trailing).reshape(len(x), -1)
    n_rows, n_cols = x.shape

    # The tile is long where memory is contiguous, and never wider than the matrix.
    rows_room, cols_room = triton.next_power_of_2(n_rows), triton.next_power_of_2(n_cols)
    if x.stride(0) < x.stride(1):
        block_rows = min(rows_room, 64)
        block_cols = min(cols_room, _TILE // block_rows)
    else:
        block_cols = min(cols_room, _TILE)
        block_rows = min(rows_room, _TILE // block_cols)

    # Rows longer than _STEPS tiles are cut into parts: a few long rows then still fill a GPU, and
    # no sum is so long that rounding errors pile up.
    n_parts = triton.cdiv(n_cols, _STEPS * block_cols)
    return _Launch(x, n_parts, block_rows, block_cols, triton.cdiv(n_cols, n_parts * block_cols))


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::row_norms", mutates_args=(), device_types="cuda")
def _row_norms_op(xs: Sequence[Tensor], p: float, squared: bool) -> Tensor:
    if not HAS_TRITON:
        return row_norms_reference(xs, p, squared)
    with torch.cuda.device_of(xs[0]):
        return _row_norms_triton(xs, p, squared)


@_row_norms_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(xs: Sequence[Tensor], p: float, squared: bool) -> Tensor:
    return (_row_norms_triton if INTERPRET else row_norms_reference)(xs, p, squared)


@_row_norms_op.register_fake
def _(xs: Sequence[Tensor], p: float, squared: bool) -> Tensor:
    return xs[0].new_empty(xs[0].shape[0], dtype=_accumulator(xs))


@_row_norms_op.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], xs: Sequence[Tensor], p: float, squared: bool
) -> tuple[Tensor, int]:
    size = info.batch_size
    batched = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(xs, in_dims[0], strict=True)
    ]
    norms = _row_norms_op([x.flatten(0, 1) for x in batched], p, squared)
    return norms.unflatten(0, batched[0].shape[:2]), 0


# 5. Public function.
def row_norms(x: Tensor | Sequence[Tensor], p: float = 2, *, squared: bool = False) -> Tensor:
    r"""Norm of every row: :math:`\|x_i\|_p` over all elements of ``x[i]``.

    .. math:: \|x_i\|_1 = \sum_j |x_{ij}|, \quad \|x_i\|_2 = \sqrt{\textstyle\sum_j x_{ij}^2},
              \quad \|x_i\|_\infty = \max_j |x_{ij}|

    A row without elements has norm 0; a NaN makes the norm of its row NaN. For ``p=2`` the squares
    must fit the dtype of the result: in float32, elements below 1e-19 lose precision, below 1e-23
    they count as 0, beyond 1.8e19 the norm may be infinite. Pass ``x.double()`` if that matters.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        x: Tensor of shape ``(n, ...)``, float16, bfloat16, float32 or float64, of any strides; or
            several with equal n, of which the elements of all form a row, without being copied
            together.
        p: 1, 2 or ``math.inf``.
        squared: Whether to return the squares of the norms, which must fit its dtype too.

    Returns:
        Tensor of shape ``(n,)``: float64 if an input is, otherwise float32; summed in that type.

    Raises:
        ValueError: If ``x`` has no dimension or no tensor, their n differ, or ``p`` is none of the
            three.
        TypeError: If ``x`` is not of one of the four dtypes, or on several devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
        >>> row_norms([torch.ones(2, 3), torch.ones(2, 5, 4)], p=1)
        tensor([23., 23.])
    """
    if not isinstance(x, Tensor | list | tuple):
        raise TypeError(
            f"x must be a tensor or a sequence of tensors, got {type(x).__name__}; "
            "convert it, for example by torch.as_tensor"
        )
    xs = [x] if isinstance(x, Tensor) else list(x)
    if not xs:
        raise ValueError("x must hold at least one tensor, got none; there is no row to measure")
    for one in xs:
        if not isinstance(one, Tensor):
            raise TypeError(
                f"x must be a tensor or a sequence of tensors, got {type(one).__name__} among its "
                "elements; convert it, for example by torch.as_tensor"
            )
        check_dense(x=one)
        if one.ndim == 0:
            raise ValueError(
                "x must have shape (n, ...), got a 0-d tensor; for one row, pass x[None]"
            )
        if one.dtype not in DTYPES:
            names = "float16, bfloat16, float32 or float64"
            raise TypeError(
                f"x must be {names}, got {one.dtype}; convert it, for example by x.float()"
            )
        if one.device != xs[0].device:
            raise TypeError(f"x must be on one device, got {xs[0].device} and {one.device}")
        if len(one) != len(xs[0]):
            raise ValueError(
                f"x must have equally many rows in each tensor, got {len(xs[0])} and {len(one)}"
            )
        if forward_ad.unpack_dual(one).tangent is not None:
            raise NotImplementedError(
                "row_norms has no forward-mode derivative, got x with a tangent; pass x.detach(), "
                "or use torch.linalg.vector_norm inside the differentiated function"
            )
    # By branches, which torch.compile guards one by one: in torch 2.11 the operator would keep
    # another call's p if it were handed p as it came.
    if p == 1:
        order = 1.0
    elif p == 2:
        order = 2.0
    elif p == math.inf:
        order = math.inf
    else:
        raise ValueError(
            f"p must be 1, 2 or math.inf, got {p!r}; for others, use torch.linalg.vector_norm"
        )
    run = row_norms_reference if ends_in_reference(*xs) else _row_norms_op
    return run(xs, order, squared)
