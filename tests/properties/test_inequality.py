"""The Gini coefficient and the Lorenz curve of any numbers, against exact fractions."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import memtools
from tests.properties.tensors import FLOATS, any_number, finite, vectors


def exact_gini(values: list[float], weights: list[float]) -> Fraction:
    pairs = sorted((Fraction(v), Fraction(w)) for v, w in zip(values, weights, strict=True))
    total = sum(v * w for v, w in pairs)
    size = sum(w for _, w in pairs)
    if total == 0:
        return Fraction(0)
    until = spread = Fraction(0)
    for v, w in pairs:
        spread += v * w * (2 * until + w - size)
        until += w
    return spread / (size * total)


def bound(result: torch.Tensor, n: int) -> float:
    """Rounding of the result, and of sums of n terms in float64."""
    return torch.finfo(result.dtype).eps + 8 * n * 2**-52


@settings(max_examples=1000)
@given(vectors(low=0.0))
def test_gini_is_exact_up_to_rounding(drawn):
    tensor, values = drawn
    result = memtools.gini(tensor)
    exact = exact_gini(values, [1.0] * len(values))
    assert abs(Fraction(float(result)) - exact) <= bound(result, len(values))


@settings(max_examples=1000)
@given(vectors(low=0.0), st.data())
def test_gini_with_weights_of_any_size(drawn, data):
    tensor, values = drawn
    some = st.lists(finite(tensor.dtype, 0.0), min_size=len(values), max_size=len(values))
    weights = torch.tensor(data.draw(some), dtype=torch.float64).to(tensor.dtype)
    if float(weights.double().sum()) == 0:
        return
    result = memtools.gini(tensor, weights)
    exact = exact_gini(values, weights.double().tolist())
    assert abs(Fraction(float(result)) - exact) <= bound(result, len(values))


@pytest.mark.parametrize("big", [1e200, 1e300])
def test_a_small_value_of_huge_weight_counts_like_a_huge_one_of_small_weight(big):
    values = torch.tensor([1 / big, big], dtype=torch.float64)
    weights = torch.tensor([big, 1 / big], dtype=torch.float64)
    exact = exact_gini(values.tolist(), weights.tolist())
    assert float(memtools.gini(values, weights)) == pytest.approx(float(exact), abs=1e-14)


@settings(max_examples=700)
@given(vectors(elements=any_number))
@example((torch.tensor([-0.0]), [-0.0]))
def test_values_that_cannot_be_shared_out_are_refused(drawn):
    tensor, values = drawn
    if all(0 <= v < float("inf") for v in values):
        assert 0 <= float(memtools.gini(tensor)) <= 1
        return
    for function in (memtools.gini, memtools.lorenz_curve):
        with pytest.raises(ValueError, match="values"):
            function(tensor)


@settings(max_examples=500)
@given(vectors(low=0.0, dtypes=FLOATS))
def test_lorenz_curve_is_exact_and_convex(drawn):
    tensor, values = drawn
    curve = memtools.lorenz_curve(tensor).double()
    assert curve.shape == (len(values) + 1,)
    total, until = sum(map(Fraction, values)), Fraction(0)
    slack = 2 * bound(memtools.lorenz_curve(tensor), len(values))
    for point, value in zip(curve.tolist(), [0.0, *sorted(values)], strict=True):
        until += Fraction(value)
        if total:
            assert abs(Fraction(point) - until / total) <= slack
    if total:
        assert bool((curve.diff().diff() >= -2 * slack).all())
