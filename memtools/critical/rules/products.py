"""Sums of products with a constant: matrices and convolutions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memtools.critical.ranges import Range, Scores
from memtools.critical.roundoff import Roundoff, UnsupportedError, refuse_inexact_products
from memtools.critical.rules.table import rule

aten = torch.ops.aten


def _linear(
    product: Callable[[Tensor, Tensor], Tensor],
    rounding: Roundoff,
    inputs: Range,
    weight: Tensor,
    terms: int,
    bias: Tensor | None = None,
) -> Range:
    r"""Bounds of ``product(x, w) + b``, for each number a sum of at most ``terms`` products.

    For x in c ± r: :math:`w \cdot c + b \pm (|w| \cdot r + \gamma (|w| \cdot |x|_{max} + |b|))`.
    """
    relative = rounding.of(terms + 2)
    spread = inputs.radius + relative * (inputs.size + rounding.floor)
    centre = product(inputs.centre, weight)
    reach = product(spread, weight.abs() + rounding.floor)
    if bias is not None:
        centre, reach = centre + bias, reach + relative * bias.abs()
    return Range(centre - reach, centre + reach)


@rule(aten.mm, aten.bmm, aten.mv)
def _matrices(
    operator: Any, rounding: Roundoff, left: Any, right: Any, bias: Tensor | None = None
) -> Range:
    if isinstance(left, Range) == isinstance(right, Range):
        raise UnsupportedError("multiplies two tensors that both depend on the input")
    terms = Range.of(left).lower.shape[-1]
    if isinstance(right, Range):
        refuse_inexact_products(rounding, left.device, "matmul")
        return _linear(lambda x, w: operator(w, x), rounding, right, left, terms, bias)
    refuse_inexact_products(rounding, right.device, "matmul")
    bounds = _linear(operator, rounding, left, right, terms, bias)
    if right.ndim != 2 or (bias is not None and bias.ndim != 1):
        return bounds
    offset = right.new_zeros(()) if bias is None else bias
    inputs = replace(left, scores=None)  # what it was computed from need not stay in memory
    return replace(bounds, scores=Scores(inputs, right.T, offset.expand(right.shape[1]), rounding))


@rule(aten.addmm)
def _addmm(
    operator: Any,
    rounding: Roundoff,
    bias: Any,
    left: Any,
    right: Any,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Range:
    if isinstance(bias, Range):
        raise UnsupportedError("adds what depends on the input")
    if (beta, alpha) != (1, 1):
        raise UnsupportedError("is scaled by alpha or beta")
    return _matrices(aten.mm.default, rounding, left, right, bias)


@rule(aten.convolution)
def _convolution(
    operator: Any,
    rounding: Roundoff,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *others: Any,
) -> Range:
    if not isinstance(inputs, Range) or isinstance(weight, Range) or isinstance(bias, Range):
        raise UnsupportedError("has a kernel that depends on the input")
    refuse_inexact_products(rounding, weight.device, "conv")
    terms = weight.numel() // weight.shape[1 if transposed else 0]  # of all groups if transposed
    if bias is not None:
        bias = bias.reshape(-1, *[1] * (weight.ndim - 2))

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return operator(x, w, None, stride, padding, dilation, transposed, *others)

    return _linear(convolve, rounding, inputs, weight, terms, bias)
