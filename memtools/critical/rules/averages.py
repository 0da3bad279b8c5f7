"""Sums and averages of numbers, and batch norm with the statistics of a training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtools.critical.ranges import Range
from memtools.critical.roundoff import Roundoff, UnsupportedError
from memtools.critical.rules.table import rule

aten = torch.ops.aten


@rule(aten.native_batch_norm, aten.cudnn_batch_norm, aten.miopen_batch_norm)
def _batch_norm(
    operator: Any,
    rounding: Roundoff,
    inputs: Range,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Range:
    """``(x - mean) scale + b`` or ``x scale + (b - mean scale)``, at most 16 roundings."""
    if training or any(isinstance(a, Range) for a in (weight, bias, mean, variance)):
        raise UnsupportedError("normalises by statistics of the input")
    shape = (-1, *[1] * (inputs.lower.ndim - 2))
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    scale, mean = scale.reshape(shape), mean.reshape(shape)
    bias = torch.zeros_like(mean) if bias is None else bias.reshape(shape)
    ends = [(x - mean) * scale + bias for x in (inputs.lower, inputs.upper)]
    size = (inputs.size + mean.abs() + rounding.floor) * (scale.abs() + rounding.floor)
    error = rounding.of(16) * (size + bias.abs())
    return Range(torch.minimum(*ends), torch.maximum(*ends)).widened(error)


def _averaged(
    rounding: Roundoff, inputs: Range, average: Callable[[Tensor], Tensor], terms: int = 0
) -> Range:
    """A sum of ``terms`` numbers, by default as many as are missing afterwards, times a factor."""
    lower, upper = average(inputs.lower), average(inputs.upper)
    terms = terms or inputs.lower.numel() // max(lower.numel(), 1)
    error = rounding.of(terms + 4) * average(inputs.size + rounding.floor)
    return Range(lower, upper).widened(error)


@rule(aten.sum, aten.mean)
def _sum(operator: Any, rounding: Roundoff, inputs: Range, *args: Any, **kwargs: Any) -> Range:
    return _averaged(rounding, inputs, lambda x: operator(x, *args, **kwargs))


@rule(aten.avg_pool2d, aten.avg_pool3d)
def _pool(
    operator: Any, rounding: Roundoff, inputs: Range, window: Sequence[int], *args: Any
) -> Range:
    terms = math.prod(window) if len(window) > 1 else window[0] ** 3  # one for all directions
    return _averaged(rounding, inputs, lambda x: operator(x, window, *args), terms)


@rule(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d)
def _pool_to(operator: Any, rounding: Roundoff, inputs: Range, sizes: Sequence[int]) -> Range:
    before = inputs.lower.shape[-len(sizes) :]
    terms = math.prod(b // a + 2 for b, a in zip(before, sizes, strict=True))
    return _averaged(rounding, inputs, lambda x: operator(x, sizes), terms)
