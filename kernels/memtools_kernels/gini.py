"""Operator ``memtools::gini``: Gini coefficients of rows, by a sort and one read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
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

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_TILE = 1024  # elements a program holds at once
_STEPS = 8  # tiles a program walks through


# 1. Reference: the specification, and what runs wherever the kernel does not.
def gini_reference(values: Tensor, weights: Tensor | None) -> Tensor:
    """Compute `gini` in plain PyTorch, on any device."""
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    if weights is None:
        ordered, order = _sorted(values), None
    else:
        ordered, order = values.where(weights > 0, 0.0).sort(1)
    n = values.shape[1]
    if weights is None or order is None:
        ordered = ordered.to(wide)
        # The coefficient does not depend on the scale; a sum of the largest floats would overflow.
        largest = ordered[:, -1:].clone()
        ordered.div_(torch.where(largest > 0, largest, 1.0))
        ranks = torch.arange(1 - n, n, 2, dtype=wide, device=values.device)
        total, size = ordered.sum(1), n
        # Not ordered @ ranks: on some processors its bits depend on the place of the row.
        spread = ordered.mul_(ranks).sum(1)
    else:
        weights = weights.gather(1, order).to(wide)
        held = _held(ordered.to(wide), weights)
        weights = _scaled(weights)
        until, size = weights.cumsum(1), weights.sum(1)
        total = held.sum(1)
        spread = held.mul_(2 * until - weights - size[:, None]).sum(1)
    return torch.where(total == 0, 0.0, spread / (size * total)).to(accumulator(values.dtype))


def _sorted(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort(1).values
    # NumPy's sort is several times as fast as PyTorch's, which makes indices as well.
    return torch.from_numpy(np.sort(values.to(accumulator(values.dtype)).numpy(), axis=1))


def _held(values: Tensor, weights: Tensor) -> Tensor:
    """Value times weight, up to a factor of the row with which the largest is about 1.

    The powers of two are added as integers: a product of a huge and a tiny number counts in full.
    """
    (v, v_power), (w, w_power) = torch.frexp(values), torch.frexp(weights)
    product = v * w
    power = (v_power + w_power).where(product > 0, -(2**20))
    below = (power - power.amax(1, keepdim=True)).clamp_min(-1000)
    return torch.ldexp(product, below.to(product.dtype))


def _scaled(weights: Tensor) -> Tensor:
    """Weights up to 1: products of two do not overflow."""
    largest = weights.amax(1, keepdim=True)
    return weights / torch.where(largest > 0, largest, 1.0)


# 2. Kernel: a program owns a part of a row, STEPS tiles.
@jit
def _gini_kernel(
    held_ptr, weights_ptr, until_ptr, spreads_ptr, totals_ptr, n, n_parts,
    TILE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row, part = program // n_parts, program % n_parts
    scale = 1.0
    if weights_ptr is None:
        largest = tl.load(held_ptr + row * n + n - 1).to(tl.float64)
        scale = tl.where(largest > 0, largest, 1.0)
    spread = tl.zeros((TILE,), tl.float64)
    total = tl.zeros((TILE,), tl.float64)
    for step in range(STEPS):
        i = (part * STEPS + step) * TILE + tl.arange(0, TILE)
        held = tl.load(held_ptr + row * n + i, mask=i < n, other=0.0).to(tl.float64) / scale
        if weights_ptr is None:
            rank = (2 * i + 1 - n).to(tl.float64)
        else:
            weight = tl.load(weights_ptr + row * n + i, mask=i < n, other=0.0)
            until = tl.load(until_ptr + row * n + i, mask=i < n, other=0.0)
            rank = 2 * until - weight - tl.load(until_ptr + row * n + n - 1)
        spread += held * rank
        total += held
    tl.store(spreads_ptr + program, tl.sum(spread))
    tl.store(totals_ptr + program, tl.sum(total))


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _gini_triton(values: Tensor, weights: Tensor | None) -> Tensor:
    k, n = values.shape
    if k == 0:
        return values.new_empty(0, dtype=accumulator(values.dtype))
    until = None
    if weights is None:
        ordered = values.sort(1).values
    else:
        ordered, order = values.where(weights > 0, 0.0).sort(1)
        weights = weights.gather(1, order).double()
        ordered = _held(ordered.double(), weights)
        weights = _scaled(weights)
        until = weights.cumsum(1)
    tile = min(triton.next_power_of_2(n), _TILE)
    n_parts = triton.cdiv(n, _STEPS * tile)
    spreads, totals = values.new_empty((2, k, n_parts), dtype=torch.float64)
    args: list[Any] = [ordered.contiguous(), weights, until, spreads, totals, n, n_parts]
    steps = min(_STEPS, triton.cdiv(n, tile))
    meta: dict[str, Any] = {"TILE": tile, "STEPS": steps, "num_warps": 4}
    _gini_kernel[(k * n_parts,)](*args, **meta)
    spread, total = spreads.sum(1), totals.sum(1)
    size = n if until is None else until[:, -1]
    return torch.where(total == 0, 0.0, spread / (size * total)).to(accumulator(values.dtype))


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::gini", mutates_args=(), device_types="cuda")
def _gini_op(values: Tensor, weights: Tensor | None) -> Tensor:
    if not HAS_TRITON:
        return gini_reference(values, weights)
    with torch.cuda.device_of(values):
        return _gini_triton(values, weights)


@_gini_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(values: Tensor, weights: Tensor | None) -> Tensor:
    return (_gini_triton if INTERPRET else gini_reference)(values, weights)


@_gini_op.register_fake
def _(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.new_empty(values.shape[0], dtype=accumulator(values.dtype))


@_gini_op.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], values: Tensor, weights: Tensor | None
) -> tuple[Tensor, int]:
    def first(x: Tensor, dim: int | None) -> Tensor:
        return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

    values = first(values, in_dims[0])
    flat = None if weights is None else first(weights, in_dims[1]).flatten(0, 1)
    return _gini_op(values.flatten(0, 1), flat).unflatten(0, values.shape[:2]), 0


# 5. Public function.
def gini(values: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Gini coefficient of each row of nonnegative values v, with weights w.

    .. math:: G = \frac{\sum_i w_i v_i (W_{i-1} + W_i - W_n)}{W_n \sum_i w_i v_i}, \qquad
              W_i = w_1 + \dots + w_i, \quad v_1 \le \dots \le v_n

    without weights each is 1. That is what the row would have with each value ``w_i`` times. 0
    where nothing is held. Summed in float64 (float32 where the device has none).

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        values: v, ``(k, n)``, in any order, float16, bfloat16, float32 or float64. They must be
            finite and not negative: that is not checked, since a GPU would have to be waited for;
            :func:`memtools.gini` does.
        weights: w, ``(k, n)``, likewise; ``None`` is 1.

    Returns:
        Tensor of shape ``(k,)``: float64 for float64 values, otherwise float32.

    Raises:
        ValueError: If ``values`` is not of shape (k, n) with a value in each row, or ``weights``
            is of another shape.
        TypeError: If an argument is of another dtype, or they are on two devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> gini(torch.tensor([[0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
        tensor([0.7500, 0.0000])
    """
    check_dense(values=values, **({} if weights is None else {"weights": weights}))
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"values must have shape (k, n) with at least one value in a row, got "
            f"{tuple(values.shape)}; a single row is values[None]"
        )
    if weights is not None and weights.shape != values.shape:
        raise ValueError(
            f"weights must have the shape of values, {tuple(values.shape)}, got "
            f"{tuple(weights.shape)}"
        )
    for name, x in (("values", values), ("weights", weights)):
        if x is None:
            continue
        if x.dtype not in DTYPES or x.device != values.device:
            names = "float16, bfloat16, float32 or float64"
            raise TypeError(
                f"{name} must be {names} on {values.device}, got {x.dtype} on {x.device}"
            )
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"gini has no forward-mode derivative, got {name} with a tangent; pass "
                f"{name}.detach()"
            )
    run = gini_reference if ends_in_reference(values, weights) else _gini_op
    return run(values, weights)
