"""Arithmetic, at most four roundings: of a number to the dtype, of a factor, of the result."""

import math
from typing import Any

import torch

from memtools.critical.ranges import Range
from memtools.critical.roundoff import Roundoff
from memtools.critical.rules.table import rule

aten = torch.ops.aten


@rule(aten.add)
def _add(operator: Any, rounding: Roundoff, left: Any, right: Any, alpha: float = 1) -> Range:
    left, right = Range.of(left), Range.of(right)
    ends = alpha * right.lower, alpha * right.upper
    bounds = Range(left.lower + torch.minimum(*ends), left.upper + torch.maximum(*ends))
    size = left.size + abs(alpha) * right.size + rounding.floor
    return bounds.widened(rounding.of(4) * size)


@rule(aten.sub)
def _subtract(operator: Any, rounding: Roundoff, left: Any, right: Any, alpha: float = 1) -> Range:
    return _add(operator, rounding, left, right, -alpha)


@rule(aten.rsub)
def _subtract_from(
    operator: Any, rounding: Roundoff, left: Any, right: Any, alpha: float = 1
) -> Range:
    return _add(operator, rounding, right, left, -alpha)


@rule(aten.neg)
def _negate(operator: Any, rounding: Roundoff, inputs: Range) -> Range:
    return Range(-inputs.upper, -inputs.lower)


@rule(aten.mul)
def _multiply(operator: Any, rounding: Roundoff, left: Any, right: Any) -> Range:
    left, right = Range.of(left), Range.of(right)
    one, other = (
        (factor * right.lower, factor * right.upper) for factor in (left.lower, left.upper)
    )
    lower = torch.minimum(torch.minimum(*one), torch.minimum(*other))
    upper = torch.maximum(torch.maximum(*one), torch.maximum(*other))
    size = (left.size + rounding.floor) * (right.size + rounding.floor)
    return Range(lower, upper).widened(rounding.of(4) * size)


@rule(aten.reciprocal)
def _invert(operator: Any, rounding: Roundoff, inputs: Any) -> Range:
    inputs = Range.of(inputs)
    # Neither zero nor so small that the inverse overflows.
    is_sure = (inputs.lower > 1 / rounding.limit) | (inputs.upper < -1 / rounding.limit)
    lower, upper = (torch.where(is_sure, 1 / x, math.nan) for x in (inputs.upper, inputs.lower))
    return Range(lower, upper).widened(rounding.of(4) * torch.maximum(lower.abs(), upper.abs()))


@rule(aten.div)
def _divide(operator: Any, rounding: Roundoff, left: Any, right: Any) -> Range:
    return _multiply(operator, rounding, left, _invert(operator, rounding, right))
