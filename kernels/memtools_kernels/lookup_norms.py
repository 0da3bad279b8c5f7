"""Operator ``memtools::lookup_norms``: squared norms of the gradients of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memtools_kernels.arguments import check_dense
from memtools_kernels.backend import (
    DTYPES,
    HAS_TRITON,
    INTERPRET,
    accumulator,
    ends_in_reference,
    jit,
)
from memtools_kernels.row_norms import row_norms_reference

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_POSITIONS = 16  # positions a program of the kernel holds at once
_ELEMENTS = 128  # elements of each


# 1. Reference: the specification, and what runs wherever the kernel does not.
def lookup_norms_reference(indices: Tensor, gradients: Tensor) -> Tensor:
    """Compute `lookup_norms` in plain PyTorch, on any device."""
    n, _, width = gradients.shape
    dtype = accumulator(gradients.dtype)
    if gradients.numel() == 0:
        return gradients.new_zeros(n, dtype=dtype)
    # A number for each row of each example's table that is looked up.
    ordered, order = indices.sort(1)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = torch.empty_like(ordered).scatter_(1, order, is_new.flatten().cumsum(0).view(n, -1) - 1)
    owner = is_new.nonzero()[:, 0]
    sums = gradients.new_zeros((len(owner), width), dtype=dtype)
    sums.index_add_(0, place.flatten(), gradients.reshape(-1, width).to(dtype))
    squares = row_norms_reference([sums], 2, True)
    return squares.new_zeros(n).index_add_(0, owner, squares)


# 2. Kernel: a program owns ELEMENTS of one example, and walks through its lookups, equal ones in
# turn.
@jit
def _lookup_norms_kernel(
    ordered_ptr, order_ptr, gradients_ptr, parts_ptr, positions, width, n_tiles,
    stride_example, stride_position, stride_element,
    POSITIONS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    example, tile = program // n_tiles, program % n_tiles
    kind = parts_ptr.dtype.element_ty
    element = tile * ELEMENTS + tl.arange(0, ELEMENTS)
    at_element = gradients_ptr + example * stride_example + element * stride_element
    ordered_ptr += example * positions
    order_ptr += example * positions
    within = tl.arange(0, POSITIONS)
    carried = tl.zeros((1, ELEMENTS), kind)
    squares = tl.zeros((POSITIONS, ELEMENTS), kind)
    for start in range(0, positions, POSITIONS):
        t = start + within
        mask = t < positions
        index = tl.load(ordered_ptr + t, mask=mask, other=-1)
        before = tl.load(ordered_ptr + t - 1, mask=mask & (t > 0), other=-2)
        after = tl.load(ordered_ptr + t + 1, mask=t + 1 < positions, other=-3)
        where = tl.load(order_ptr + t, mask=mask, other=0)
        both = mask[:, None] & (element < width)[None, :]
        gradient = tl.load(at_element[None, :] + where[:, None] * stride_position,
                           mask=both, other=0.0).to(kind)  # fmt: skip
        starts = (index != before).to(tl.int32)[:, None]
        goes_on = (within == 0)[:, None] & (starts == 0)
        gradient += tl.where(goes_on, carried, 0.0)
        starts, _ = tl.broadcast(starts, gradient)
        _, sums = tl.associative_scan((starts, gradient), 0, _within_run)
        ends = mask & (index != after)
        squares += tl.where(ends[:, None], sums * sums, 0.0)
        last = (within == POSITIONS - 1)[:, None]
        carried = tl.sum(tl.where(last, sums, 0.0), 0, keep_dims=True)
    tl.store(parts_ptr + program, tl.sum(squares))


@jit
def _within_run(left_starts, left, right_starts, right):
    return left_starts | right_starts, tl.where(right_starts != 0, right, left + right)


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _lookup_norms_triton(indices: Tensor, gradients: Tensor) -> Tensor:
    n, positions, width = gradients.shape
    if gradients.numel() == 0:
        return gradients.new_zeros(n, dtype=accumulator(gradients.dtype))
    ordered, order = indices.contiguous().sort(1)
    elements = min(triton.next_power_of_2(width), _ELEMENTS)
    n_tiles = triton.cdiv(width, elements)
    parts = gradients.new_empty((n, n_tiles), dtype=accumulator(gradients.dtype))
    args: list[Any] = [ordered, order, gradients, parts, positions, width, n_tiles]
    meta: dict[str, Any] = {"POSITIONS": _POSITIONS, "ELEMENTS": elements, "num_warps": 4}
    _lookup_norms_kernel[(n * n_tiles,)](*args, *gradients.stride(), **meta)
    return parts.sum(1)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::lookup_norms", mutates_args=(), device_types="cuda")
def _lookup_norms_op(indices: Tensor, gradients: Tensor) -> Tensor:
    if not HAS_TRITON:
        return lookup_norms_reference(indices, gradients)
    with torch.cuda.device_of(gradients):
        return _lookup_norms_triton(indices, gradients)


@_lookup_norms_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(indices: Tensor, gradients: Tensor) -> Tensor:
    return (_lookup_norms_triton if INTERPRET else lookup_norms_reference)(indices, gradients)


@_lookup_norms_op.register_fake
def _(indices: Tensor, gradients: Tensor) -> Tensor:
    return gradients.new_empty(gradients.shape[0], dtype=accumulator(gradients.dtype))


@_lookup_norms_op.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], indices: Tensor, gradients: Tensor
) -> tuple[Tensor, int]:
    size = info.batch_size
    indices, gradients = (
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((indices, gradients), in_dims, strict=True)
    )
    norms = _lookup_norms_op(indices.flatten(0, 1), gradients.flatten(0, 1))
    return norms.unflatten(0, gradients.shape[:2]), 0


# 5. Public function.
def lookup_norms(indices: Tensor, gradients: Tensor) -> Tensor:
    r"""Squared norm of each example's gradient with respect to an embedding table.

    .. math:: s_i = \textstyle\sum_v \lVert \sum_{t\,:\,\mathrm{index}_{it} = v} g_{it} \rVert^2

    Lookups of the same row add up. The table itself is never formed, nor are inner products: the
    lookups are sorted and each run of equal ones is added in order.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        indices: Rows of the table that are looked up, ``(n, T)`` int64, not negative.
        gradients: g, of what is looked up, ``(n, T, d)``, float16, bfloat16, float32 or float64,
            of any strides; zero where a lookup does not count.

    Returns:
        Tensor of shape ``(n,)``: float64 for float64 gradients, otherwise float32; summed in that
        type.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If an argument is of another dtype, or they are on two devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> lookup_norms(torch.tensor([[7, 5, 7]]), torch.tensor([[[1.0], [2.0], [3.0]]]))
        tensor([20.])
    """
    check_dense(indices=indices, gradients=gradients)
    if gradients.ndim != 3 or indices.shape != gradients.shape[:2]:
        raise ValueError(
            "indices and gradients must have shapes (n, T) and (n, T, d), got "
            f"{tuple(indices.shape)} and {tuple(gradients.shape)}"
        )
    check_lookups("lookup_norms", indices, gradients=gradients)
    run = lookup_norms_reference if ends_in_reference(indices, gradients) else _lookup_norms_op
    return run(indices, gradients)


def check_lookups(operator: str, indices: Tensor, **others: Tensor) -> None:
    """Raise if indices and gradients of lookups are of a wrong type, or on two devices."""
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be torch.int64, got {indices.dtype}; pass indices.long()")
    for name, x in others.items():
        if x.dtype not in DTYPES or x.device != indices.device:
            names = "float16, bfloat16, float32 or float64"
            raise TypeError(
                f"{name} must be {names} on {indices.device}, got {x.dtype} on {x.device}"
            )
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{operator} has no forward-mode derivative, got {name} with a tangent; pass "
                f"{name}.detach()"
            )
