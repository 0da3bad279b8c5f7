"""Bounds of functions of one number."""

import pytest
import torch
from torch.nn import functional as F

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


CURVES = {
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.1, 0.7),
    "clamp from below": lambda x: x.clamp_min(0.1),
    "clamp from above": lambda x: x.clamp_max(0.1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-0.1), torch.tensor(0.7)),
    "divided": lambda x: x / -0.3,
    "divided by": lambda x: 0.1 / (x + 10),
    "elu": lambda x: F.elu(x, 1.3),
    "elu that turns": lambda x: F.elu(x, -1.3),
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu that turns": lambda x: F.leaky_relu(x, -0.1),
    "log": lambda x: torch.log(x + 10),
    "log1p": lambda x: torch.log1p(x.abs()),
    "mish": F.mish,
    "negative": lambda x: -x,
    "power 0.5": lambda x: x.relu() ** 0.5,
    "power 2": torch.square,
    "power 3": lambda x: x**3,
    "power -2": lambda x: (x + 10) ** -2,
    "prelu": lambda x: F.prelu(x, torch.full((1,), -0.3, dtype=x.dtype)),
    "reciprocal": lambda x: torch.reciprocal(x - 10),
    "relu": torch.relu,
    "rsqrt": lambda x: torch.rsqrt(x + 10),
    "scaled": lambda x: x * -0.1,
    "shifted": lambda x: torch.add(0.1 - x, 0.3, alpha=0.7),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softplus with a step": lambda x: F.softplus(x, beta=2, threshold=1),
    "sqrt": lambda x: torch.sqrt(x + 10),
    "subtracted": lambda x: torch.sub(x, 0.3, alpha=0.7),
    "tanh": torch.tanh,
    "where": lambda x: torch.where(torch.tensor(True), x, torch.tensor(0.1)),
    "where not": lambda x: torch.where(torch.tensor(False), x, torch.tensor(0.1).double() / 3),
}


@DTYPES
@pytest.mark.parametrize("name", CURVES)
def test_bounds_of_functions_of_one_number(intervals, name, dtype):
    """They hold for many values, as the model rounds them, and are no wider than need be."""
    function = CURVES[name]
    torch.manual_seed(0)
    centre = torch.cat([torch.linspace(-9, 9, 150), torch.randn(50) * 1e-3]).double()
    for width in (0.0, 1e-6, 0.03, 4.0):
        low, high = (
            (centre - width).clamp(-9.5, 9.5).to(dtype),
            (centre + width).clamp(-9.5, 9.5).to(dtype),
        )
        bounds = intervals.bounds_of(function, low, high)
        share = torch.linspace(0, 1, 300, dtype=torch.float64)[:, None]
        points = (low.double() + (high.double() - low.double()) * share).to(dtype)
        values = function(torch.minimum(torch.maximum(points, low), high)).double()
        assert (bounds.lower <= values).all()
        assert (values <= bounds.upper).all()
        least, most = values.amin(0), values.amax(0)
        # What lies between the points, a step of a softplus, and rounding.
        slack = 0.02 * (most - least) + 500 * torch.finfo(dtype).eps * (10 + values.abs().amax(0))
        slack += {"softplus": 1e-8, "softplus with a step": 0.7}.get(name, 0)
        assert (bounds.lower >= least - slack).all()
        assert (bounds.upper <= most + slack).all()


@pytest.mark.parametrize("name", ["abs", "log1p", "power 0.5", "scaled", "tanh"])
def test_bounds_hold_where_the_model_takes_small_numbers_for_zero(intervals, name):
    """But for operators that do not compute, such as relu; what comes after allows for it."""
    low = torch.tensor([1e-40, 1e-39, 2e-38, 0.0])
    high = low * 1.5
    bounds = intervals.bounds_of(CURVES[name], low, high)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not do so")
    try:
        values = [CURVES[name](x).clone() for x in (low, high)]
    finally:
        torch.set_flush_denormal(False)
    for value in values:
        assert (bounds.lower <= value.double()).all()
        assert (value.double() <= bounds.upper).all()
