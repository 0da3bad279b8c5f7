"""Operator ``memtools::row_norms``: the L1, L2 or maximum norm of every row, in one read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memtools_kernels.backend import DTYPES, HAS_TRITON, INTERPRET, accumulator, jit

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_TILE = 2048  # elements a program holds at once
_STEPS = 8  # tiles a program walks through


# 1. Reference: the specification, and what runs wherever the kernel does not.
def row_norms_reference(x: Tensor, p: float) -> Tensor:
    """Compute `row_norms` in plain PyTorch, on any device."""
    if x.numel() == 0:
        return x.new_zeros(len(x), dtype=accumulator(x.dtype))
    rows = x.reshape(len(x), -1).to(accumulator(x.dtype))
    if p == 1:
        return rows.abs().sum(1)
    # Not torch.linalg.vector_norm, whose float32 L2 norm drifts by 2e-5 over a million elements.
    return rows.square().sum(1).sqrt() if p == 2 else rows.abs().amax(1)


# 2. Kernel: a program owns ROWS rows times one part of their columns, STEPS tiles of COLS.
@jit
def _row_norms_kernel(
    x_ptr, out_ptr, n_rows, n_cols, stride_row, stride_col, n_parts,
    P: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr,
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
    elif P == 2:
        squares = tl.sum(acc, axis=1, keep_dims=True)
        # Rounded correctly; tl.sqrt is so only in float64, and flushes subnormal sums to 0.
        norms = tl.sqrt(squares) if acc.dtype == tl.float64 else tl.sqrt_rn(squares)
    else:
        norms = tl.reduce(acc, 1, _larger, keep_dims=True)  # tl.max drops NaN
    tl.store(out_ptr + rows * n_parts + part, norms, mask=rows < n_rows)


@jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _row_norms_triton(x: Tensor, p: float) -> Tensor:
    n_rows, n_cols = len(x), math.prod(x.shape[1:])
    if x.numel() == 0:
        return x.new_zeros(n_rows, dtype=accumulator(x.dtype))
    # A norm does not mind the order of its elements: with the trailing dimensions sorted by stride,
    # channels-last is read in place. `reshape` copies what still is not one strided dimension.
    trailing = sorted(range(1, x.ndim), key=x.stride, reverse=True)
    x = x.permute(0, *trailing).reshape(n_rows, n_cols)

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
    n_steps = triton.cdiv(n_cols, n_parts * block_cols)
    norms = x.new_empty((n_rows, n_parts), dtype=accumulator(x.dtype))
    grid = (triton.cdiv(n_rows, block_rows) * n_parts,)
    meta: dict[str, Any] = {"P": p, "ROWS": block_rows, "COLS": block_cols, "STEPS": n_steps}
    meta["num_warps"] = 4
    strides = x.stride(0), x.stride(1)
    _row_norms_kernel[grid](x, norms, n_rows, n_cols, *strides, n_parts, **meta)
    # The norm of a row is the norm of the norms of its parts.
    return norms.squeeze(1) if n_parts == 1 else _row_norms_triton(norms, p)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::row_norms", mutates_args=(), device_types="cuda")
def _row_norms_op(x: Tensor, p: float) -> Tensor:
    if not HAS_TRITON:
        return row_norms_reference(x, p)
    with torch.cuda.device_of(x):
        return _row_norms_triton(x, p)


@_row_norms_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(x: Tensor, p: float) -> Tensor:
    return _row_norms_triton(x, p) if INTERPRET else row_norms_reference(x, p)


@_row_norms_op.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape[0], dtype=accumulator(x.dtype))


@_row_norms_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, p: float) -> tuple[Tensor, int]:
    dim = in_dims[0]
    assert dim is not None
    x = x.movedim(dim, 0)
    return _row_norms_op(x.flatten(0, 1), p).unflatten(0, x.shape[:2]), 0


# 5. Public function.
def row_norms(x: Tensor, p: float = 2) -> Tensor:
    r"""Norm of every row: :math:`\|x_i\|_p` over all elements of ``x[i]``.

    .. math:: \|x_i\|_1 = \sum_j |x_{ij}|, \quad \|x_i\|_2 = \sqrt{\textstyle\sum_j x_{ij}^2},
              \quad \|x_i\|_\infty = \max_j |x_{ij}|

    A row without elements has norm 0; a NaN makes the norm of its row NaN. For ``p=2`` the squares
    must fit the dtype of the result: in float32, elements below 1e-19 lose precision, below 1e-23
    they count as 0, and beyond 1.8e19 the norm is infinite. Pass ``x.double()`` if that matters.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        x: Tensor of shape ``(n, ...)``, float16, bfloat16, float32 or float64, of any strides.
        p: 1, 2 or ``math.inf``.

    Returns:
        Tensor of shape ``(n,)``: float64 for float64 input, otherwise float32; summed in that type.

    Raises:
        ValueError: If ``x`` has no dimension or ``p`` is none of the three.
        TypeError: If ``x`` is not of one of the four dtypes.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.])
    """
    if x.ndim == 0:
        raise ValueError("x must have shape (n, ...), got a 0-d tensor; for one row, pass x[None]")
    if x.dtype not in DTYPES:
        names = "float16, bfloat16, float32 or float64"
        raise TypeError(f"x must be {names}, got {x.dtype}; convert it, for example by x.float()")
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
    if forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(
            "row_norms has no forward-mode derivative, got x with a tangent; pass x.detach(), or "
            "use torch.linalg.vector_norm inside the differentiated function"
        )
    return _row_norms_op(x, order)
