"""Functions of a row: softmax and log-softmax."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memtools.critical.ranges import Range, Scores
from memtools.critical.roundoff import FUNCTION, Roundoff
from memtools.critical.rules.table import rule

aten = torch.ops.aten


@rule(aten._log_softmax, aten._softmax)
def _softmax(
    operator: Any, rounding: Roundoff, inputs: Range, dim: int, half_to_float: bool
) -> Range:
    r"""Bounds of :math:`\log p_i = -\log(1 + e^{r_i - x_i})`, with r the log of the others' sum.

    The model takes the largest off first, which rounds the exponents by ``2 u max|x|``. It takes
    the same off and divides by the same for all of a row, so that what is ahead by
    ``16 u (64 + max|x|)`` stays ahead.
    """
    top, classes = inputs.size.amax(dim, keepdim=True), inputs.lower.shape[dim]
    error = rounding.of(classes + FUNCTION)
    error = error + (rounding.of(8) + Roundoff(torch.float64).of(classes)) * top
    zero = inputs.lower.new_zeros(())
    bounds = Range(
        -torch.logaddexp(zero, _log_sum_of_others(inputs.upper, dim) - inputs.lower),
        -torch.logaddexp(zero, _log_sum_of_others(inputs.lower, dim) - inputs.upper),
    ).widened(error)
    if operator.overloadpacket is aten._softmax:
        bounds = Range(bounds.lower.exp(), bounds.upper.exp())
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
