"""Bounds hold for the numbers that a model rounds, in any order, however small or large."""

import random
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def summed(a, b, dtype):
    """``sum a b`` as a model may have it, one product after the other in its dtype."""
    kind = np.float32 if dtype == torch.float32 else np.float64
    return (a.numpy().astype(kind) * b.numpy().astype(kind)).cumsum(dtype=kind)[-1].item()


def exactly(a, b):
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction())


@cache
def long_sums(dtype):
    """Factors x and w, ``sum x w`` in a few orders, and exactly."""
    torch.manual_seed(0)
    terms, unit = 4900, torch.finfo(dtype).eps / 2
    growing = torch.full((terms,), 1.01 * unit, dtype=dtype)
    growing[0] = 1
    found = []
    for x, w in (
        (growing, torch.ones(terms, dtype=dtype)),
        (torch.ones(terms, dtype=dtype), growing),
        (torch.randn(terms).to(dtype), torch.randn(terms).to(dtype)),
    ):
        orders = [torch.arange(terms), torch.randperm(terms), (x * w).argsort()]
        values = [summed(x[order], w[order], dtype) for order in orders]
        exact = exactly(x, w)
        if x is growing or w is growing:  # no bound that is smaller by a tenth would do
            assert values[0] - exact > 0.9 * terms * unit
        found.append((x, w, values, exact))
    return found


SUMS = {
    "linear": lambda x, w: F.linear(x, w[None], torch.zeros(1, dtype=x.dtype)),
    "matrices": lambda x, w: x @ w[:, None],
    "vector": lambda x, w: x @ w,
    "batches": lambda x, w: torch.bmm(x[None], w[None, :, None]),
    "conv": lambda x, w: F.conv1d(x[:, None], w[None, None]),
    "conv, transposed": lambda x, w: F.conv_transpose1d(x[:, :, None], w[:, None, None]),
    "sum": lambda x, w: (x * w).sum(1),
    "mean": lambda x, w: (x * w).mean(1) * x.shape[1],
    "average pool": lambda x, w: F.avg_pool1d((x * w)[:, None], x.shape[1]) * x.shape[1],
    "average pool in a square": lambda x, w: F.avg_pool2d((x * w).view(1, 1, 70, 70), [70]) * 4900,
    "average pool to a size": lambda x, w: (
        F.adaptive_avg_pool1d(torch.cat([x * w, x * w], 1)[:, None], 2)[0, 0, 0] * x.shape[1]
    ),
}


@DTYPES
@pytest.mark.parametrize("name", SUMS)
def test_bounds_hold_for_sums_in_any_order(intervals, name, dtype):
    """Of numbers each of which is rounded up when it is added, and of random ones."""
    for x, w, values, exact in long_sums(dtype):
        bounds = intervals.bounds_of(lambda x, w=w: SUMS[name](x, w), x[None], x[None])
        values = [*values, SUMS[name](x[None], w).item()]
        assert all(bounds.lower.item() <= value <= bounds.upper.item() for value in values)
        assert bounds.lower.item() <= exact <= bounds.upper.item()


def test_classes_that_rounding_can_exchange_are_not_proved(intervals):
    """Logits that are apart by about the rounding of a long sum, in any order of summation."""
    torch.manual_seed(0)
    terms = 250
    proved = exchanged = 0
    for case in range(100):
        dtype = (torch.float32, torch.float64)[case % 2]
        weight = (torch.rand(2, terms, dtype=torch.float64) + 0.5).to(dtype)
        x = (torch.rand(1, terms, dtype=torch.float64) + 0.5).to(dtype)
        first, second = (exactly(x[0], w) for w in weight)
        apart = (
            10 ** random.Random(case).uniform(-3, 1)
            * terms
            * torch.finfo(dtype).eps
            / 2
            * 2
            * first
        )
        model = nn.Linear(terms, 2).to(dtype)
        model.weight.data = weight
        model.bias.data = torch.tensor([0.0, float(first - second - apart)], dtype=dtype)
        is_proved = intervals.prove(model, x, x, torch.tensor([0])).is_proved.item()
        proved += is_proved
        orders = [torch.arange(terms), (weight[0] * x[0]).argsort(), (weight[1] * x[0]).argsort()]
        sums = [
            [summed(x[0, o], w[o], dtype) + b for o in orders]
            for w, b in zip(weight, model.bias.tolist(), strict=True)
        ]
        is_exchanged = min(sums[0]) <= max(sums[1])
        exchanged += is_exchanged
        assert not (is_proved and is_exchanged)
    assert proved > 10
    assert exchanged > 10


@settings(max_examples=60)
@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(0, 10, width=32),
    other=st.floats(-1e3, 1e3, width=32),
    share=st.floats(0, 1),
)
def test_bounds_hold_in_arithmetic(intervals, low, width, other, share):
    """Of any sign, and so small that they are lost."""
    scales = torch.tensor([1.0, 1e-22, 1e-40], dtype=torch.float64)
    a, b, c = ((scales * v).float() for v in (low, low + width, other))
    x = torch.minimum(torch.maximum(a + (b - a) * share, a), b)
    for function in (
        lambda x: x * c,
        lambda x: x + c,
        lambda x: x * x * c,
        lambda x: x / (c.abs() + 1),
        lambda x: c * x.exp(),
        lambda x: F.linear(x[:, None], c[:, None]),
    ):
        bounds, value = intervals.bounds_of(function, a, b), function(x).double()
        flushed = torch.where(value.abs() < torch.finfo(torch.float32).tiny, 0.0, value)
        for v in (value, flushed):
            assert ((bounds.lower <= v) & (v <= bounds.upper) | bounds.lower.isnan()).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1e20 * 1e20 * 0,
        lambda x: x.exp() - x.exp(),
        lambda x: (x * 1e20 * 1e20).clamp(-1, 1),
        lambda x: F.relu6(x.exp()) * 0,
        lambda x: torch.sigmoid((x * 1e30) ** 2 - (x * 1e30) ** 2),
        lambda x: torch.softmax(x[:, :2] * 1e38 * 10, 1),
        lambda x: F.max_pool1d((x * 1e38 * 10)[:, None], 2),
        lambda x: x * torch.inf,
        lambda x: x + torch.tensor([torch.nan]),
        lambda x: 1 / (x - 100),
        lambda x: (x * 1e-32) / 1e-39,
        lambda x: (x - 100) ** -1,
        lambda x: torch.log(x - 200),
        lambda x: F.linear(x, torch.full((1, 4), 1e37)),
        lambda x: F.linear(F.linear(x, torch.eye(4) * 1e30), torch.full((1, 4), 1e-30)),
        lambda x: x.view(-1, 2, 2) / 1e-45,
        torch.empty_like,
    ],
)
def test_nothing_is_known_of_what_may_overflow(intervals, function):
    """And once it is not, of nothing that comes from it: the model's own number may be NaN."""
    x = torch.full((1, 4), 100.0)
    bounds = intervals.bounds_of(function, x - 1, x + 1)
    assert bounds.lower.isnan().all()
    assert bounds.upper.isnan().all()
