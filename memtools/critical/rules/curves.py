"""Functions of one number, by where they turn: activations, exp, log, powers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtools.critical.ranges import Range
from memtools.critical.roundoff import FUNCTION, Roundoff, UnsupportedError
from memtools.critical.rules.table import rule

aten = torch.ops.aten


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


@rule(*CURVES)
def _function(operator: Any, rounding: Roundoff, inputs: Any, *args: Any, **kwargs: Any) -> Range:
    if not isinstance(inputs, Range) or any(isinstance(a, Range) for a in args):
        raise UnsupportedError("has a parameter that depends on the input")
    return _extremes(CURVES[operator.overloadpacket], operator, rounding, inputs, *args, **kwargs)


def _extremes(
    curve: Curve, operator: Any, rounding: Roundoff, inputs: Range, *args: Any, **kwargs: Any
) -> Range:
    """The values at both ends, and at each turn or at the end that is next to it."""
    lower, upper = inputs.lower, inputs.upper
    # Zero as well where the model may take an end for it: some functions are steep there.
    tiny = torch.finfo(rounding.dtype).tiny
    lower = torch.where(lower.abs() < tiny, lower.clamp(max=0), lower)
    upper = torch.where(upper.abs() < tiny, upper.clamp(min=0), upper)
    turns = [torch.clamp(torch.full_like(lower, t), lower, upper) for t in curve.turns]
    values = torch.stack([operator(x, *args, **kwargs) for x in (lower, upper, *turns)])
    bounds = Range(values.amin(0), values.amax(0))
    size = curve.size(inputs.size, bounds.size, *args) + rounding.floor
    return bounds.widened(rounding.of(FUNCTION) * size)


@rule(aten.softplus)
def _softplus(
    operator: Any, rounding: Roundoff, inputs: Range, beta: float = 1, threshold: float = 20
) -> Range:
    """``log(1 + exp(beta x)) / beta``; above the threshold x, which is less by a little."""
    if threshold > math.log(rounding.limit):
        raise UnsupportedError(f"has the threshold {threshold}, before which exp may overflow")
    curve = Curve(lambda x, value, *_: x + value)
    step = math.log1p(math.exp(-threshold)) / abs(beta)
    return _extremes(curve, operator, rounding, inputs, beta, threshold).widened(2 * step)


@rule(aten.pow)
def _power(operator: Any, rounding: Roundoff, inputs: Any, exponent: Any) -> Range:
    if not isinstance(inputs, Range) or not isinstance(exponent, int | float):
        raise UnsupportedError("has an exponent that is no number")
    if float(torch.tensor(exponent, dtype=rounding.dtype)) != exponent:
        raise UnsupportedError(f"has the exponent {exponent}, which the model has to round")
    # Beside a pole the exponent is negative, and the value at the turn infinite.
    return _extremes(Curve(_of_value), operator, rounding, inputs, exponent)
