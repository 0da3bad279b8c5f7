"""Operator ``memtools::lookup_dots``: how the gradients of an embedding and of a tied head meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memtools_kernels.arguments import check_dense
from memtools_kernels.backend import (
    HAS_TRITON,
    INTERPRET,
    ends_in_reference,
    jit,
    precision,
    without_autocast,
)
from memtools_kernels.lookup_norms import check_lookups

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_TILE = 32  # lookups, and positions of the head, of a program of the kernel


# 1. Reference: the specification, and what runs wherever the kernel does not.
def lookup_dots_reference(
    indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Compute `lookup_dots` in plain PyTorch, on any device."""
    dtype = _accumulator(gradients, rows, columns)
    dots = gradients.new_zeros(len(gradients), dtype=dtype)
    if gradients.numel() == 0 or columns.numel() == 0:
        return dots
    for i, (index, gradient, row, column) in enumerate(
        zip(indices, gradients, rows, columns, strict=True)
    ):
        with without_autocast(gradients.device):
            products = column.to(dtype) @ gradient.to(dtype).mT
        dots[i] = products.mul_(row.index_select(1, index)).sum()
    return dots


def _accumulator(*tensors: Tensor) -> torch.dtype:
    wide = any(x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


# 2. Kernel: a program owns TILE positions of the head times TILE lookups of one example.
@jit
def _lookup_dots_kernel(
    indices_ptr, gradients_ptr, rows_ptr, columns_ptr, parts_ptr, lookups, positions, width,
    table, s_tiles, t_tiles, gradient_strides, row_strides, column_strides,
    TILE: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    example, tile = program // (s_tiles * t_tiles), program % (s_tiles * t_tiles)
    kind = parts_ptr.dtype.element_ty
    t = tile // s_tiles * TILE + tl.arange(0, TILE)
    s = tile % s_tiles * TILE + tl.arange(0, TILE)
    columns_ptr += example * column_strides[0]
    gradients_ptr += example * gradient_strides[0]
    products = tl.zeros((TILE, TILE), kind)
    for start in range(0, width, K):
        k = (start + tl.arange(0, K)).to(tl.int64)
        mask = (t < positions)[:, None] & (k < width)[None, :]
        offsets = t[:, None] * column_strides[1] + k[None, :] * column_strides[2]
        a = tl.load(columns_ptr + offsets, mask=mask, other=0.0)
        mask = (k < width)[:, None] & (s < lookups)[None, :]
        offsets = s[None, :] * gradient_strides[1] + k[:, None] * gradient_strides[2]
        b = tl.load(gradients_ptr + offsets, mask=mask, other=0.0)
        if UPCAST:
            a, b = a.to(kind), b.to(kind)
        products = tl.dot(a, b, products, input_precision=PRECISION, out_dtype=kind)
    index = tl.load(indices_ptr + example * lookups + s, mask=s < lookups, other=0)
    at = example * row_strides[0] + t[:, None] * row_strides[1] + index[None, :] * row_strides[2]
    mask = (t < positions)[:, None] & (s < lookups)[None, :]
    is_there = mask & ((index >= 0) & (index < table))[None, :]
    products *= tl.load(rows_ptr + at, mask=is_there, other=float("nan")).to(kind)
    tl.store(parts_ptr + program, tl.sum(tl.where(mask, products, 0.0)))


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _lookup_dots_triton(
    indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    n, lookups, width = gradients.shape
    positions, dtype = rows.shape[1], _accumulator(gradients, rows, columns)
    if gradients.numel() == 0 or columns.numel() == 0:
        return gradients.new_zeros(n, dtype=dtype)
    common = torch.promote_types(gradients.dtype, columns.dtype)
    common = torch.float64 if dtype == torch.float64 else common
    gradients, columns = gradients.to(common), columns.to(common)
    s_tiles, t_tiles = triton.cdiv(lookups, _TILE), triton.cdiv(positions, _TILE)
    parts = gradients.new_empty((n, s_tiles * t_tiles), dtype=dtype)
    args: list[Any] = [
        indices.contiguous(), gradients, rows, columns, parts, lookups, positions, width,
        rows.shape[2], s_tiles, t_tiles, gradients.stride(), rows.stride(), columns.stride(),
    ]  # fmt: skip
    meta: dict[str, Any] = {"TILE": _TILE, "K": 32, **precision(common, gradients.device)}
    meta["num_warps"] = 4
    _lookup_dots_kernel[(parts.numel(),)](*args, **meta)
    return parts.sum(1)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::lookup_dots", mutates_args=(), device_types="cuda")
def _lookup_dots_op(indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if not HAS_TRITON:
        return lookup_dots_reference(indices, gradients, rows, columns)
    with torch.cuda.device_of(gradients):
        return _lookup_dots_triton(indices, gradients, rows, columns)


@_lookup_dots_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(*args: Tensor) -> Tensor:
    return (_lookup_dots_triton if INTERPRET else lookup_dots_reference)(*args)


@_lookup_dots_op.register_fake
def _(indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    dtype = _accumulator(gradients, rows, columns)
    return gradients.new_empty(gradients.shape[0], dtype=dtype)


@_lookup_dots_op.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Tensor, int]:
    size = info.batch_size
    args = tuple(
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(args, in_dims, strict=True)
    )
    dots = _lookup_dots_op(*(x.flatten(0, 1) for x in args))
    return dots.unflatten(0, args[0].shape[:2]), 0


# 5. Public function.
def lookup_dots(indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    r"""Inner product of each example's gradients of an embedding and of the head tied to it.

    .. math:: s_i = \Bigl\langle \textstyle\sum_s e_{\mathrm{index}_{is}} g_{is}^\top,\;
              \sum_t r_{it} c_{it}^\top \Bigr\rangle
              = \textstyle\sum_{st} r_{it,\mathrm{index}_{is}}\, (c_{it} \cdot g_{is})

    The squared norm of the gradient of a table that both use is that of :func:`lookup_norms`, of
    :func:`outer_norms` and twice this. Precision as in :func:`outer_norms`.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        indices: Rows of the table that are looked up, ``(n, S)`` int64, from 0 to V - 1: others
            raise on a CPU, and make the example's result NaN on a GPU, for which one would have to
            wait.
        gradients: g, of what is looked up, ``(n, S, d)``, float16, bfloat16, float32 or float64,
            of any strides; zero where a lookup does not count.
        rows: r, gradients of the head's output, ``(n, T, V)``, likewise; those of rows that the
            example does not look up are not read.
        columns: c, inputs of the head, ``(n, T, d)``, likewise.

    Returns:
        Tensor of shape ``(n,)``: float64 if an argument is, otherwise float32; summed in that type.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If an argument is of another dtype, or they are on several devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> rows, columns = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]])
        >>> lookup_dots(torch.tensor([[1, 0]]), torch.tensor([[[1.0], [10.0]]]), rows, columns)
        tensor([36.])
    """
    check_dense(indices=indices, gradients=gradients, rows=rows, columns=columns)
    fits = (
        gradients.ndim == rows.ndim == columns.ndim == 3
        and indices.shape == gradients.shape[:2]
        and rows.shape[:2] == columns.shape[:2]
        and (len(gradients), gradients.shape[2]) == (len(columns), columns.shape[2])
    )
    if not fits:
        shapes = [tuple(x.shape) for x in (indices, gradients, rows, columns)]
        raise ValueError(
            "indices, gradients, rows and columns must have shapes (n, S), (n, S, d), (n, T, V) "
            f"and (n, T, d), got {', '.join(map(str, shapes))}"
        )
    check_lookups("lookup_dots", indices, gradients=gradients, rows=rows, columns=columns)
    run = (
        lookup_dots_reference
        if ends_in_reference(indices, gradients, rows, columns)
        else _lookup_dots_op
    )
    return run(indices, gradients, rows, columns)
