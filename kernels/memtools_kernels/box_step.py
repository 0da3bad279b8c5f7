"""Operator ``memtools::box_step``: one step of a search for adversarial points, in one pass."""

from __future__ import annotations

import math
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
from memtools_kernels.splitmix import GOLDEN, mix_, shifted

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_CACHED = 1 << 17  # elements the reference works on at once: its scratch memory stays in the cache
_TILE = 256  # pairs of elements a program of the kernel holds
_LONGEST = 64  # of these in one row: the last tile of a row is then never far from full


# 1. Reference: the specification, and what runs wherever the kernel does not.
def box_step_reference(
    points: Tensor,
    gradients: Tensor,
    low: Tensor,
    high: Tensor,
    unit: Tensor,
    sizes: Tensor,
    noise: Tensor | None,
    keys: Tensor | None,
    steps: Tensor | None,
) -> None:
    """Compute `box_step` in plain PyTorch, on any device, with ``unit`` and ``noise`` flat."""
    n, d = len(points), math.prod(points.shape[1:])
    points, gradients, low, high = (x.reshape(n, d) for x in (points, gradients, low, high))
    rows = max(1, min(n, _CACHED // max(1, d)))
    scratch = torch.empty(rows, d, dtype=unit.dtype, device=points.device)
    stream = None if keys is None or steps is None else _Stream(keys, steps, d, rows)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        x = points[block].to(unit.dtype)  # itself if it is of that type
        signs = scratch[: len(x)].copy_(gradients[block]).sign_()  # 0 for NaN
        x.addcmul_(signs.mul_(unit), sizes[block, None])
        if noise is not None and stream is not None:
            x.addcmul_(stream.draw(block).to(x.dtype), noise)
        points[block].copy_(x.clamp_(low[block], high[block]))


class _Stream:
    """Noise of up to ``rows`` examples at a time, in memory that is allocated once."""

    def __init__(self, keys: Tensor, steps: Tensor, d: int, rows: int) -> None:
        half = (d + 1) // 2
        self.starts = (keys + steps * half * GOLDEN)[:, None]
        self.counters = torch.arange(1, half + 1, device=keys.device) * GOLDEN
        integers, floats = ({"dtype": x, "device": keys.device} for x in (torch.int64, torch.float))
        self.bits, self.scratch = torch.empty(2, rows, half, **integers)
        self.radius, self.angle = torch.empty(2, rows, half, **floats)
        self.eta = torch.empty(rows, d, **floats)

    def draw(self, block: slice) -> Tensor:
        """Compute `box_noise` of some examples; the next call writes over it."""
        starts = self.starts[block]
        memory = self.bits, self.scratch, self.radius, self.angle, self.eta
        bits, scratch, radius, angle, eta = (x[: len(starts)] for x in memory)
        half, rest = bits.shape[1], eta.shape[1] // 2
        mix_(torch.add(starts, self.counters, out=bits), scratch)
        # Box and Muller, from uniform numbers of 24 bits in (0, 1] and [0, 1).
        radius.copy_(shifted(bits, 40, scratch)).add_(1).mul_(2**-24).log_().mul_(-2).sqrt_()
        angle.copy_(shifted(bits, 16, scratch, kept=24)).mul_(2 * math.pi * 2**-24)
        torch.cos(angle, out=eta[:, :half]).mul_(radius)
        torch.sin(angle[:, :rest], out=eta[:, half:]).mul_(radius[:, :rest])
        return eta


# 2. Kernel: a program owns ROWS rows times PAIRS pairs of elements, which are half a row apart.
@jit
def _box_step_kernel(
    points_ptr, gradients_ptr, low_ptr, high_ptr, unit_ptr, sizes_ptr, noise_ptr, keys_ptr,
    steps_ptr, n_rows, n_cols, half, n_parts, ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    rows = program // n_parts * ROWS + tl.arange(0, ROWS)[:, None]
    pairs = program % n_parts * PAIRS + tl.arange(0, PAIRS)[None, :]
    sizes = tl.load(sizes_ptr + rows, mask=rows < n_rows, other=0.0)
    radius, angle = 0.0, 0.0
    if noise_ptr is not None:
        keys = tl.load(keys_ptr + rows, mask=rows < n_rows, other=0)
        steps = tl.load(steps_ptr + rows, mask=rows < n_rows, other=0)
        radius, angle = _radius_and_angle(keys, steps * half + pairs + 1)
    for second in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        cols = pairs + half * second
        owned = (pairs < half) & (cols < n_cols)
        mask, offsets = owned & (rows < n_rows), rows * n_cols + cols
        x = tl.load(points_ptr + offsets, mask=mask, other=0.0).to(sizes.dtype)
        gradient = tl.load(gradients_ptr + offsets, mask=mask, other=0.0).to(sizes.dtype)
        low = tl.load(low_ptr + offsets, mask=mask, other=0.0).to(sizes.dtype)
        high = tl.load(high_ptr + offsets, mask=mask, other=0.0).to(sizes.dtype)
        sign = (gradient > 0).to(sizes.dtype) - (gradient < 0).to(sizes.dtype)
        x += sizes * tl.load(unit_ptr + cols, mask=owned, other=0.0) * sign
        if noise_ptr is not None:
            eta = radius * (tl.sin(angle) if second else tl.cos(angle))
            x += tl.load(noise_ptr + cols, mask=owned, other=0.0) * eta.to(sizes.dtype)
        x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)
        tl.store(points_ptr + offsets, x.to(points_ptr.dtype.element_ty), mask=mask)


@jit
def _radius_and_angle(keys, counters):
    bits = keys.to(tl.uint64) + counters.to(tl.uint64) * 0x9E3779B97F4A7C15
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    bits = bits ^ (bits >> 31)
    radius = ((bits >> 40).to(tl.int32) + 1).to(tl.float32) * 2**-24
    angle = ((bits >> 16) & 0xFFFFFF).to(tl.int32).to(tl.float32) * (6.283185307179586 * 2**-24)
    return tl.sqrt_rn(-2.0 * tl.log(radius)), angle


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _box_step_triton(points: Tensor, *others: Tensor | None) -> None:
    if points.numel() == 0:
        return
    n_rows, n_cols = len(points), math.prod(points.shape[1:])
    half = triton.cdiv(n_cols, 2)
    pairs = min(triton.next_power_of_2(half), _LONGEST)
    rows = min(triton.next_power_of_2(n_rows), _TILE // pairs)
    n_parts = triton.cdiv(half, pairs)
    grid = (triton.cdiv(n_rows, rows) * n_parts,)
    # In a search they all are contiguous; elsewhere they are copied.
    dense = [None if x is None else x.contiguous() for x in others]
    args: list[Any] = [points, *dense, n_rows, n_cols, half, n_parts]
    meta: dict[str, Any] = {"ROWS": rows, "PAIRS": pairs, "num_warps": 4}
    _box_step_kernel[grid](*args, **meta)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::box_step", mutates_args=("points",), device_types="cuda")
def _box_step_op(
    points: Tensor,
    gradients: Tensor,
    low: Tensor,
    high: Tensor,
    unit: Tensor,
    sizes: Tensor,
    noise: Tensor | None,
    keys: Tensor | None,
    steps: Tensor | None,
) -> None:
    args = points, gradients, low, high, unit, sizes, noise, keys, steps
    if not HAS_TRITON:
        return box_step_reference(*args)
    with torch.cuda.device_of(points):
        return _box_step_triton(*args)


@_box_step_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(*args: Any) -> None:
    return _box_step_triton(*args) if INTERPRET else box_step_reference(*args)


@_box_step_op.register_fake
def _(*args: Any) -> None:
    return None


# 5. Public functions.
def box_step(
    points: Tensor,
    gradients: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    unit: Tensor,
    sizes: Tensor,
    noise: Tensor | None = None,
    keys: Tensor | None = None,
    steps: Tensor | None = None,
) -> None:
    r"""Move points along the signs of their gradients, with noise, and back into their boxes.

    One step of LASS, algorithm 1 of Arpit et al. (2017), on ``points`` in place:

    .. math:: x_{ij} \leftarrow \operatorname{clamp}\bigl(x_{ij}
              + s_i u_j \operatorname{sign} g_{ij} + \beta_j \eta_{ij},\;
              l_{ij}, h_{ij}\bigr)

    with the noise :math:`\eta` of :func:`box_noise`. Computed in float64 for float64 points and
    otherwise in float32; the results are within the bounds exactly. A NaN gradient has sign 0, a
    NaN anywhere else makes its point NaN. Not differentiable, and not for use inside ``vmap``.

    Args:
        points: x, ``(n, ...)``, contiguous; float16, bfloat16, float32 or float64.
        gradients: g, of the shape, dtype and device of ``points``; copied unless contiguous.
        low: l, smallest allowed values, like ``gradients``.
        high: h, largest allowed values, like ``gradients``; counts where it is below ``low``.
        unit: u, floating point, of a shape that broadcasts to that of one example.
        sizes: s, floating point, ``(n,)``.
        noise: beta, like ``unit``; ``None`` for no noise.
        keys: As in :func:`box_noise`. Not needed without noise.
        steps: As in :func:`box_noise`. Not needed without noise.

    Raises:
        ValueError: If an argument is missing, of the wrong shape or not contiguous.
        TypeError: If a tensor is of the wrong dtype or on another device than ``points``.
        NotImplementedError: If ``points`` is to be differentiated, which in place would silently
            give the derivative of doing nothing.

    Example:
        >>> points, gradients = torch.zeros(2, 2), torch.tensor([[3.0, -1.0], [0.5, 0.0]])
        >>> unit, sizes = torch.tensor(0.1), torch.tensor([1.0, 3.0])
        >>> box_step(points, gradients, points - 0.2, points + 0.2, unit=unit, sizes=sizes)
        >>> points
        tensor([[ 0.1000, -0.1000],
                [ 0.2000,  0.0000]])
    """
    check_dense(points=points, gradients=gradients, low=low, high=high, unit=unit, sizes=sizes)
    if points.ndim == 0:
        raise ValueError("points must have shape (n, ...), got a 0-d tensor; pass points[None]")
    if points.dtype not in DTYPES:
        names = "float16, bfloat16, float32 or float64"
        raise TypeError(f"points must be {names}, got {points.dtype}; pass points.float()")
    if not points.is_contiguous():
        raise ValueError(
            f"points must be contiguous, got strides {points.stride()}; they are changed in place, "
            "so keep the result of points.contiguous() and pass that"
        )
    if forward_ad.unpack_dual(points).tangent is not None or (
        points.requires_grad and torch.is_grad_enabled()
    ):
        raise NotImplementedError(
            "box_step has no derivative, got points that are to be differentiated; "
            "pass points.detach(), which shares their memory"
        )
    for name, x in (("gradients", gradients), ("low", low), ("high", high)):
        _check(name, x, points.shape, points.dtype, points.device)
    dtype = accumulator(points.dtype)
    sizes = sizes.to(dtype) if sizes.is_floating_point() else sizes
    _check("sizes", sizes, points.shape[:1], dtype, points.device)
    unit = _of_an_example("unit", unit, points, dtype)
    if noise is None:
        keys = steps = None
    else:
        if keys is None or steps is None:
            missing = "keys" if keys is None else "steps"
            raise ValueError(f"{missing} must be given with noise, got None; see box_noise")
        check_dense(noise=noise, keys=keys, steps=steps)
        noise = _of_an_example("noise", noise, points, dtype)
        for name, x in (("keys", keys), ("steps", steps)):
            _check(name, x, points.shape[:1], torch.int64, points.device)
    tensors = points, gradients, low, high, unit, sizes, noise, keys, steps
    run = box_step_reference if ends_in_reference(*tensors) else _box_step_op
    run(*tensors)


def box_noise(keys: Tensor, steps: Tensor, d: int) -> Tensor:
    r"""Noise of :func:`box_step`: standard normal numbers that depend on key, step and place only.

    With :math:`h = \lceil d / 2 \rceil`, elements p and h + p of an example come from one 64-bit
    number, output number :math:`h \cdot \text{step} + p + 1` of SplitMix64 (Steele et al. 2014)
    started at ``key``, by the transform of Box and Muller: 24 bits for the radius, 24 for the
    angle. The same on every device and for every dtype of points, up to the rounding of logarithm,
    cosine and sine in float32. No value is beyond 5.77.

    Args:
        keys: ``(n,)`` int64; each is a stream of noise.
        steps: ``(n,)`` int64; each is a place in the stream.
        d: Elements of an example.

    Returns:
        Tensor of shape ``(n, d)``, float32.

    Raises:
        ValueError: If ``keys`` and ``steps`` are not both of shape ``(n,)``, or d is negative.
        TypeError: If they are not int64, or on two devices.

    Example:
        >>> box_noise(torch.tensor([7, 7]), torch.tensor([0, 1]), 3)
        tensor([[ 1.0685,  1.5857, -0.8617],
                [-0.4571, -0.9637, -0.0082]])
    """
    check_dense(keys=keys, steps=steps)
    if not isinstance(d, int) or d < 0:
        raise ValueError(f"d must be a whole number from 0, got {d}; it is the number of elements")
    _check("keys", keys, keys.shape[:1], torch.int64, keys.device)
    _check("steps", steps, keys.shape, torch.int64, keys.device)
    return _Stream(keys, steps, d, len(keys)).draw(slice(None))


def _check(
    name: str, x: Tensor, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> None:
    if x.shape != shape:
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}; "
            "choose the same examples everywhere"
        )
    if x.dtype != dtype or x.device != device:
        raise TypeError(
            f"{name} must be {dtype} on {device}, got {x.dtype} on {x.device}; "
            f'pass {name}.to("{device}", {dtype})'
        )


def _of_an_example(name: str, x: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    example = points.shape[1:]
    sizes = zip(reversed(x.shape), reversed(example), strict=False)
    if x.ndim > len(example) or any(own not in (1, size) for own, size in sizes):
        raise ValueError(
            f"{name} must broadcast to the shape of one example, {tuple(example)}, got "
            f"{tuple(x.shape)}; a number per channel has shape (C, 1, 1)"
        )
    x = x.to(dtype) if x.is_floating_point() else x
    _check(name, x, x.shape, dtype, points.device)
    return x.expand(example).flatten()
