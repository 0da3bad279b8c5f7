"""What PyTorch's operators do to intervals, with their rounding: one rule for each operator.

A rule takes the bounds of what goes into an operator and gives bounds of all that can come out of
it: for every number in between, and for every way in which the model, in its own dtype, may round
and order its sums. The bounds are computed in float64, and their own rounding is counted as well.

Of an operator in a dtype with unit roundoff u (2^-24 in float32, 2^-53 in float64) is assumed:

- A sum of k products is off by at most ``k u / (1 - k u)`` times the sum of their absolute values.
  This holds for any order, with or without fused multiply-adds; but not for convolutions by
  Winograd's or Fourier's algorithm nor for products in TF32 or bfloat16, which are refused.
- A function of one number (tanh, exp, ...) is off by at most 64 u, relative to the size that its
  rule names. The worst that was measured for PyTorch's on a CPU in float32 is 6.4 u, for gelu, and
  its vectorised exp promises 20 u.
- Any operator may take numbers below the smallest normal one for zero. Those that only move or
  compare numbers may give zero for such a one as well, which the rules of the others allow for.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = [
    "RULES",
    "Bounds",
    "Rounding",
    "Scores",
    "UnsupportedError",
    "refuse_inexact_products",
]

aten = torch.ops.aten

FUNCTION = 64  # roundings that a function of one number counts for


class UnsupportedError(Exception):
    """There is no rule for what an operator is asked to do."""


@dataclass(frozen=True)
class Rounding:
    """How far results in a dtype are from the real numbers that they stand for.

    Attributes:
        dtype: float32 or float64.
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(f"computes in {self.dtype}, and not in float32 or float64")

    def of(self, count: int) -> float:
        """Relative error after ``count`` roundings, the model's and those of bounds together."""
        # Bounds are rounded more often: as a centre, as a radius, and where the two are added.
        return _gamma(count, self.dtype) + _gamma(4 * count + 16, torch.float64)

    @property
    def floor(self) -> float:
        """What is added to every size, so that relative errors cover underflow: sqrt(tiny / u).

        For a product xy, u floor |y| is more than what is lost where an x below tiny is taken for
        zero, and u floor² is the tiny that is lost where xy is.
        """
        info = torch.finfo(self.dtype)
        return math.sqrt(info.tiny / (info.eps / 2))

    @property
    def limit(self) -> float:
        """The largest number of which it is sure that nothing on the way to it overflows."""
        return math.sqrt(torch.finfo(self.dtype).max)


def _gamma(count: int, dtype: torch.dtype) -> float:
    share = count * torch.finfo(dtype).eps / 2
    return share / (1 - share) if share < 1 else math.inf


@dataclass(frozen=True)
class Bounds:
    """Numbers that are known to lie between two others; NaN where nothing is known.

    Attributes:
        lower: float64.
        upper: float64, of the same shape.
        scores: What is known besides about which entry of a row is the largest.
    """

    lower: Tensor
    upper: Tensor
    scores: "Scores | None" = None

    @classmethod
    def of(cls, value: "Bounds | Tensor | float") -> "Bounds":
        """Bounds as they are; a constant as an interval of no width."""
        if isinstance(value, Bounds):
            return value
        value = torch.as_tensor(value, dtype=torch.float64)
        return cls(value, value)

    @property
    def centre(self) -> Tensor:
        """Halfway between the two, but for rounding, which the radius makes up for."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Largest distance from the centre."""
        return torch.maximum(self.upper - self.centre, self.centre - self.lower)

    @property
    def size(self) -> Tensor:
        """Largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widened(self, error: Tensor | float) -> "Bounds":
        """Bounds of numbers that are off by ``error``."""
        return Bounds(self.lower - error, self.upper + error)


@dataclass(frozen=True)
class Scores:
    r"""A row of numbers as a linear map of an interval, to tell which of them is the largest.

    Two logits move together with what they are computed from, so that

    .. math:: f_c - f_k = (w_c - w_k) \cdot h + b_c - b_k

    has tighter bounds than the difference of the bounds of :math:`f_c` and of :math:`f_k`.

    Attributes:
        inputs: h, ``(n, K)``.
        weight: Rows w, ``(C, K)``.
        bias: b, ``(C,)``.
        rounding: Of the dtype in which the model computes the numbers.
        tolerance: By how much the largest must be ahead to be the largest still after what was
            done to the numbers since, ``(n, 1)``; ``None`` where nothing was.
    """

    inputs: Bounds
    weight: Tensor
    bias: Tensor
    rounding: Rounding
    tolerance: Tensor | None = None

    @classmethod
    def of(cls, bounds: Bounds, rounding: Rounding) -> "Scores":
        """Of numbers of which nothing is known but their bounds: the identity map."""
        classes = bounds.lower.shape[1]
        weight = torch.eye(classes, dtype=torch.float64, device=bounds.lower.device)
        return cls(bounds, weight, weight.new_zeros(classes), rounding)

    def is_largest(self, classes: Tensor) -> Tensor:
        """Whether entry ``classes[i]`` of row i is the largest wherever in the interval h is.

        Args:
            classes: ``(n,)`` int64.

        Returns:
            ``(n,)`` bool; never true where a tie is possible.
        """
        floor, terms = self.rounding.floor, self.weight.shape[1] + 2
        sizes = (self.inputs.size + floor) @ (self.weight.abs() + floor).T + self.bias.abs()
        errors = self.rounding.of(terms) * sizes
        found = torch.zeros_like(classes, dtype=torch.bool)
        for label in classes.unique().tolist():
            rows = classes == label
            weight, bias = self.weight[label] - self.weight, self.bias[label] - self.bias
            ahead = self.inputs.centre[rows] @ weight.T + bias
            ahead -= self.inputs.radius[rows] @ weight.abs().T
            ahead -= errors[rows, label, None] + errors[rows]
            wins = ahead > (0 if self.tolerance is None else self.tolerance[rows])
            wins[:, label] = True
            found[rows] = wins.all(1)
        return found


Rule = Callable[..., Any]
"""``rule(operator, rounding, *args, **kwargs)``: from an operator's arguments, with bounds of what
depends on the input and constants in float64, to the bounds of its first result or of all."""

RULES: dict[Any, Rule] = {}


def _rule(*operators: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


@_rule(
    *(aten.alias, aten.cat, aten.clone, aten.copy, aten.detach, aten.diagonal, aten.expand),
    *(aten.flip, aten.gather, aten.index, aten.index_select, aten.new_ones, aten.new_zeros),
    *(aten.ones_like, aten.permute, aten.pixel_shuffle, aten.pixel_unshuffle, aten.repeat),
    *(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d),
    *(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d),
    *(aten.roll, aten.select, aten.slice, aten.split, aten.split_with_sizes, aten.squeeze),
    *(aten.stack, aten.t, aten.transpose, aten.unbind, aten.unfold, aten.unsqueeze),
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten.view, aten.where, aten.zero, aten.zeros_like, aten._to_copy, aten._unsafe_view),
    *(aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.amin, aten.max),
    *(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.maximum, aten.min),
    *(aten.minimum, aten.relu),
)
def _monotone(operator: Any, rounding: Rounding, *args: Any, **kwargs: Any) -> Any:
    """Moves numbers or picks some of them; falls nowhere if one of them rises, and is exact."""
    lows, highs = (
        operator(*ends[0], **ends[1])
        for ends in (
            tree_map_only(Bounds, lambda b: b.lower, (args, kwargs)),
            tree_map_only(Bounds, lambda b: b.upper, (args, kwargs)),
        )
    )
    if isinstance(lows, Tensor):
        return Bounds(lows, highs)
    # Beside the largest number comes its place, an integer, of which nothing is known.
    return [Bounds(*ends) for ends in zip(lows, highs, strict=True) if ends[0].is_floating_point()]


@_rule(
    *(aten.clamp, aten.clamp_max, aten.clamp_min, aten.constant_pad_nd, aten.fill),
    *(aten.full_like, aten.hardtanh, aten.masked_fill, aten.new_full),
)
def _with_number(operator: Any, rounding: Rounding, *args: Any, **kwargs: Any) -> Bounds:
    """As :func:`_monotone`, beside a number that the model rounds to its dtype."""
    bounds = _monotone(operator, rounding, *args, **kwargs)
    return bounds.widened(rounding.of(1) * (bounds.size + rounding.floor))


@_rule(aten.empty_like, aten.new_empty)
def _memory(operator: Any, rounding: Rounding, *args: Any, **kwargs: Any) -> Bounds:
    """Nothing is known until something is written there."""
    bounds = _monotone(operator, rounding, *args, **kwargs)
    return Bounds(bounds.lower.fill_(math.nan), bounds.upper.fill_(math.nan))


# Sums of products.


def _linear(
    product: Callable[[Tensor, Tensor], Tensor],
    rounding: Rounding,
    inputs: Bounds,
    weight: Tensor,
    terms: int,
    bias: Tensor | None = None,
) -> Bounds:
    r"""Bounds of ``product(x, w) + b``, for each number a sum of at most ``terms`` products.

    For x in c ± r: :math:`w \cdot c + b \pm (|w| \cdot r + \gamma (|w| \cdot |x|_{max} + |b|))`.
    """
    relative = rounding.of(terms + 2)
    spread = inputs.radius + relative * (inputs.size + rounding.floor)
    centre = product(inputs.centre, weight)
    reach = product(spread, weight.abs() + rounding.floor)
    if bias is not None:
        centre, reach = centre + bias, reach + relative * bias.abs()
    return Bounds(centre - reach, centre + reach)


@_rule(aten.mm, aten.bmm, aten.mv)
def _matrices(
    operator: Any, rounding: Rounding, left: Any, right: Any, bias: Tensor | None = None
) -> Bounds:
    if isinstance(left, Bounds) == isinstance(right, Bounds):
        raise UnsupportedError("multiplies two tensors that both depend on the input")
    terms = Bounds.of(left).lower.shape[-1]
    if isinstance(right, Bounds):
        refuse_inexact_products(rounding, left.device, "matmul")
        return _linear(lambda x, w: operator(w, x), rounding, right, left, terms, bias)
    refuse_inexact_products(rounding, right.device, "matmul")
    bounds = _linear(operator, rounding, left, right, terms, bias)
    if right.ndim != 2 or (bias is not None and bias.ndim != 1):
        return bounds
    offset = right.new_zeros(()) if bias is None else bias
    inputs = replace(left, scores=None)  # what it was computed from need not stay in memory
    return replace(bounds, scores=Scores(inputs, right.T, offset.expand(right.shape[1]), rounding))


@_rule(aten.addmm)
def _addmm(
    operator: Any,
    rounding: Rounding,
    bias: Any,
    left: Any,
    right: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Bounds:
    if isinstance(bias, Bounds):
        raise UnsupportedError("adds what depends on the input")
    if (beta, alpha) != (1, 1):
        raise UnsupportedError("is scaled by alpha or beta")
    return _matrices(aten.mm.default, rounding, left, right, bias)


@_rule(aten.convolution)
def _convolution(
    operator: Any,
    rounding: Rounding,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *others: Any,
) -> Bounds:
    if not isinstance(inputs, Bounds) or isinstance(weight, Bounds) or isinstance(bias, Bounds):
        raise UnsupportedError("has a kernel that depends on the input")
    refuse_inexact_products(rounding, weight.device, "conv")
    terms = weight.numel() // weight.shape[1 if transposed else 0]  # of all groups if transposed
    if bias is not None:
        bias = bias.reshape(-1, *[1] * (weight.ndim - 2))

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return operator(x, w, None, stride, padding, dilation, transposed, *others)

    return _linear(convolve, rounding, inputs, weight, terms, bias)


def refuse_inexact_products(rounding: Rounding, device: torch.device, kind: str) -> None:
    """Raise where sums of products may be further off than :meth:`Rounding.of` says."""
    backends: Any = torch.backends
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"runs on {device.type}, whose rounding is not known; use the CPU")
    if device.type == "cuda" and kind == "conv":
        if backends.cudnn.enabled:
            raise UnsupportedError(
                "runs in cuDNN, whose Winograd and FFT algorithms round by more than can be told; "
                "set torch.backends.cudnn.enabled = False, or use the CPU"
            )
        kind = "matmul"  # which it then becomes
    if rounding.dtype != torch.float32:
        return
    library = backends.cuda if device.type == "cuda" else backends.mkldnn
    precision = getattr(library, kind).fp32_precision
    for name in ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"):
        if os.environ.get(name, "STRICT").upper() != "STRICT":
            precision = f"{name}={os.environ[name]}"
    if precision not in ("none", "ieee"):
        raise UnsupportedError(
            f'rounds float32 to {precision} in products; set torch.backends.fp32_precision = "ieee"'
        )
    if kind == "conv" and not (backends.mkldnn.is_available() and backends.mkldnn.enabled):
        raise UnsupportedError(
            "runs without oneDNN, and so maybe in NNPACK, whose Winograd and FFT algorithms round "
            "by more than can be told; set torch.backends.mkldnn.enabled = True, or use float64"
        )


@_rule(aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm)
def _batch_norm(
    operator: Any,
    rounding: Rounding,
    inputs: Bounds,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Bounds:
    """``(x - mean) scale + b`` or ``x scale + (b - mean scale)``, at most 16 roundings."""
    if training or any(isinstance(a, Bounds) for a in (weight, bias, mean, variance)):
        raise UnsupportedError("normalises by statistics of the input")
    shape = (-1, *[1] * (inputs.lower.ndim - 2))
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    scale, mean = scale.reshape(shape), mean.reshape(shape)
    bias = torch.zeros_like(mean) if bias is None else bias.reshape(shape)
    ends = [(x - mean) * scale + bias for x in (inputs.lower, inputs.upper)]
    size = (inputs.size + mean.abs() + rounding.floor) * (scale.abs() + rounding.floor)
    error = rounding.of(16) * (size + bias.abs())
    return Bounds(torch.minimum(*ends), torch.maximum(*ends)).widened(error)


def _averaged(
    rounding: Rounding, inputs: Bounds, average: Callable[[Tensor], Tensor], terms: int = 0
) -> Bounds:
    """A sum of ``terms`` numbers, by default as many as are missing afterwards, times a factor."""
    lower, upper = average(inputs.lower), average(inputs.upper)
    terms = terms or inputs.lower.numel() // max(lower.numel(), 1)
    error = rounding.of(terms + 4) * average(inputs.size + rounding.floor)
    return Bounds(lower, upper).widened(error)


@_rule(aten.sum, aten.mean)
def _sum(operator: Any, rounding: Rounding, inputs: Bounds, *args: Any, **kwargs: Any) -> Bounds:
    return _averaged(rounding, inputs, lambda x: operator(x, *args, **kwargs))


@_rule(aten.avg_pool2d, aten.avg_pool3d)
def _pool(
    operator: Any, rounding: Rounding, inputs: Bounds, window: Sequence[int], *args: Any
) -> Bounds:
    terms = math.prod(window) if len(window) > 1 else window[0] ** 3  # one for all directions
    return _averaged(rounding, inputs, lambda x: operator(x, window, *args), terms)


@_rule(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d)
def _pool_to(operator: Any, rounding: Rounding, inputs: Bounds, sizes: Sequence[int]) -> Bounds:
    before = inputs.lower.shape[-len(sizes) :]
    terms = math.prod(b // a + 2 for b, a in zip(before, sizes, strict=True))
    return _averaged(rounding, inputs, lambda x: operator(x, sizes), terms)


# Arithmetic, at most four roundings: of a number to the dtype, of a factor, of the result.


@_rule(aten.add)
def _add(operator: Any, rounding: Rounding, left: Any, right: Any, alpha: float = 1) -> Bounds:
    left, right = Bounds.of(left), Bounds.of(right)
    ends = alpha * right.lower, alpha * right.upper
    bounds = Bounds(left.lower + torch.minimum(*ends), left.upper + torch.maximum(*ends))
    size = left.size + abs(alpha) * right.size + rounding.floor
    return bounds.widened(rounding.of(4) * size)


@_rule(aten.sub)
def _subtract(operator: Any, rounding: Rounding, left: Any, right: Any, alpha: float = 1) -> Bounds:
    return _add(operator, rounding, left, right, -alpha)


@_rule(aten.rsub)
def _subtract_from(
    operator: Any, rounding: Rounding, left: Any, right: Any, alpha: float = 1
) -> Bounds:
    return _add(operator, rounding, right, left, -alpha)


@_rule(aten.neg)
def _negate(operator: Any, rounding: Rounding, inputs: Bounds) -> Bounds:
    return Bounds(-inputs.upper, -inputs.lower)


@_rule(aten.mul)
def _multiply(operator: Any, rounding: Rounding, left: Any, right: Any) -> Bounds:
    left, right = Bounds.of(left), Bounds.of(right)
    one, other = (
        (factor * right.lower, factor * right.upper) for factor in (left.lower, left.upper)
    )
    lower = torch.minimum(torch.minimum(*one), torch.minimum(*other))
    upper = torch.maximum(torch.maximum(*one), torch.maximum(*other))
    size = (left.size + rounding.floor) * (right.size + rounding.floor)
    return Bounds(lower, upper).widened(rounding.of(4) * size)


@_rule(aten.reciprocal)
def _invert(operator: Any, rounding: Rounding, inputs: Any) -> Bounds:
    inputs = Bounds.of(inputs)
    # Neither zero nor so small that the inverse overflows.
    is_sure = (inputs.lower > 1 / rounding.limit) | (inputs.upper < -1 / rounding.limit)
    lower, upper = (torch.where(is_sure, 1 / x, math.nan) for x in (inputs.upper, inputs.lower))
    return Bounds(lower, upper).widened(rounding.of(4) * torch.maximum(lower.abs(), upper.abs()))


@_rule(aten.div)
def _divide(operator: Any, rounding: Rounding, left: Any, right: Any) -> Bounds:
    return _multiply(operator, rounding, left, _invert(operator, rounding, right))


# Functions of one number.


@dataclass(frozen=True)
class Curve:
    """A function f of one number x that only rises or only falls between its turns.

    Attributes:
        size: From the largest absolute x and f(x), and the function's other arguments, to the size
            that its error is relative to.
        turns: Where rising becomes falling, or the other way round.
    """

    size: Callable[..., Any]
    turns: tuple[float, ...] = (0.0,)


def _of_value(x: Tensor, value: Tensor, *others: Any) -> Tensor:
    return value


def _of_argument(x: Tensor, value: Tensor, *others: Any) -> Tensor:
    return x


CURVES: dict[Any, Curve] = {
    aten.abs: Curve(lambda x, value: 0 * value),
    aten.elu: Curve(lambda x, value, alpha=1.0, scale=1.0: value + abs(alpha * scale)),
    aten.erf: Curve(_of_value),
    aten.exp: Curve(_of_value),
    aten.expm1: Curve(_of_value),
    # By the error function, and by tanh.
    aten.gelu: Curve(_of_argument, (-0.7517915246935646, -0.7524614220710163)),
    aten.hardsigmoid: Curve(lambda x, value: 1 + value),
    aten.hardswish: Curve(_of_argument, (-1.5,)),
    aten.leaky_relu: Curve(_of_value),
    aten.log: Curve(_of_value),
    aten.log1p: Curve(_of_value),
    aten.mish: Curve(_of_argument, (-1.1924312145154954,)),
    aten.rsqrt: Curve(_of_value),
    aten.sigmoid: Curve(_of_value),
    aten.silu: Curve(_of_argument, (-1.2784645427610741,)),
    aten.sqrt: Curve(_of_value),
    aten.tanh: Curve(_of_value),
    aten._prelu_kernel: Curve(_of_value),
}


@_rule(*CURVES)
def _function(operator: Any, rounding: Rounding, inputs: Any, *args: Any, **kwargs: Any) -> Bounds:
    if not isinstance(inputs, Bounds) or any(isinstance(a, Bounds) for a in args):
        raise UnsupportedError("has a parameter that depends on the input")
    return _extremes(CURVES[operator.overloadpacket], operator, rounding, inputs, *args, **kwargs)


def _extremes(
    curve: Curve, operator: Any, rounding: Rounding, inputs: Bounds, *args: Any, **kwargs: Any
) -> Bounds:
    """The values at both ends, and at each turn or at the end that is next to it."""
    lower, upper = inputs.lower, inputs.upper
    # Zero as well where the model may take an end for it: some functions are steep there.
    tiny = torch.finfo(rounding.dtype).tiny
    lower = torch.where(lower.abs() < tiny, lower.clamp(max=0), lower)
    upper = torch.where(upper.abs() < tiny, upper.clamp(min=0), upper)
    turns = [torch.clamp(torch.full_like(lower, t), lower, upper) for t in curve.turns]
    values = torch.stack([operator(x, *args, **kwargs) for x in (lower, upper, *turns)])
    bounds = Bounds(values.amin(0), values.amax(0))
    size = curve.size(inputs.size, bounds.size, *args) + rounding.floor
    return bounds.widened(rounding.of(FUNCTION) * size)


@_rule(aten.softplus)
def _softplus(
    operator: Any, rounding: Rounding, inputs: Bounds, beta: float = 1, threshold: float = 20
) -> Bounds:
    """``log(1 + exp(beta x)) / beta``; above the threshold x, which is less by a little."""
    if threshold > math.log(rounding.limit):
        raise UnsupportedError(f"has the threshold {threshold}, before which exp may overflow")
    curve = Curve(lambda x, value, *_: x + value)
    step = math.log1p(math.exp(-threshold)) / abs(beta)
    return _extremes(curve, operator, rounding, inputs, beta, threshold).widened(2 * step)


@_rule(aten.pow)
def _power(operator: Any, rounding: Rounding, inputs: Any, exponent: Any) -> Bounds:
    if not isinstance(inputs, Bounds) or not isinstance(exponent, int | float):
        raise UnsupportedError("has an exponent that is no number")
    if float(torch.tensor(exponent, dtype=rounding.dtype)) != exponent:
        raise UnsupportedError(f"has the exponent {exponent}, which the model has to round")
    # Beside a pole the exponent is negative, and the value at the turn infinite.
    return _extremes(Curve(_of_value), operator, rounding, inputs, exponent)


# Functions of a row.


@_rule(aten._log_softmax, aten._softmax)
def _softmax(
    operator: Any, rounding: Rounding, inputs: Bounds, dim: int, half_to_float: bool
) -> Bounds:
    r"""Bounds of :math:`\log p_i = -\log(1 + e^{r_i - x_i})`, with r the log of the others' sum.

    The model takes the largest off first, which rounds the exponents by ``2 u max|x|``. It takes
    the same off and divides by the same for all of a row, so that what is ahead by
    ``16 u (64 + max|x|)`` stays ahead.
    """
    top, classes = inputs.size.amax(dim, keepdim=True), inputs.lower.shape[dim]
    error = rounding.of(classes + FUNCTION)
    error = error + (rounding.of(8) + Rounding(torch.float64).of(classes)) * top
    zero = inputs.lower.new_zeros(())
    bounds = Bounds(
        -torch.logaddexp(zero, _log_sum_of_others(inputs.upper, dim) - inputs.lower),
        -torch.logaddexp(zero, _log_sum_of_others(inputs.lower, dim) - inputs.upper),
    ).widened(error)
    if operator.overloadpacket is aten._softmax:
        bounds = Bounds(bounds.lower.exp(), bounds.upper.exp())
        bounds = bounds.widened(rounding.of(FUNCTION) * (bounds.size + rounding.floor))
    if inputs.lower.ndim != 2 or dim % 2 != 1:
        return bounds
    scores = inputs.scores
    if scores is None or scores.tolerance is not None:
        scores = Scores.of(replace(inputs, scores=None), rounding)
    return replace(bounds, scores=replace(scores, tolerance=rounding.of(16) * (FUNCTION + top)))


def _log_sum_of_others(x: Tensor, dim: int) -> Tensor:
    """``log sum_{j != i} exp(x_j)`` for each i, without differences, which would cancel."""
    nothing = torch.full_like(x.narrow(dim, 0, 1), -math.inf)
    before = torch.cat([nothing, x.narrow(dim, 0, x.shape[dim] - 1)], dim).logcumsumexp(dim)
    after = torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), nothing], dim).flip(dim)
    return torch.logaddexp(before, after.logcumsumexp(dim).flip(dim))
