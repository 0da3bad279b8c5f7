import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtools import gini, lorenz_curve

# Sums of at most 60 values in float64, twice.
TOLERANCE = 1e-12

values = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60)
positive = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60)


def as_float64(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def pairwise(x):
    """Half the relative mean absolute difference: the definition."""
    mean = x.mean()
    if mean == 0:
        return torch.zeros((), dtype=torch.float64)
    n = len(x)
    return (x[:, None] - x[None, :]).abs().sum() / (2 * n**2 * mean)


@given(values)
def test_gini_is_the_relative_mean_difference(numbers):
    x = as_float64(numbers)
    assert float(gini(x)) == pytest.approx(float(pairwise(x)), abs=TOLERANCE)


@given(values)
def test_lorenz_curve_is_the_share_of_the_smallest(numbers):
    x = as_float64(numbers)
    curve = lorenz_curve(x)
    assert curve.shape == (len(x) + 1,)
    assert curve[0] == 0
    assert curve[-1] == 1
    if x.sum() == 0:
        x = torch.ones_like(x)
    for i in range(len(x) + 1):
        share = sum(sorted(x.tolist())[:i]) / sum(sorted(x.tolist()))
        assert float(curve[i]) == pytest.approx(share, abs=TOLERANCE)


@given(values)
def test_gini_is_one_less_twice_the_area_under_the_lorenz_curve(numbers):
    x = as_float64(numbers)
    area = torch.trapezoid(lorenz_curve(x), dx=1 / len(x))
    assert float(gini(x)) == pytest.approx(float(1 - 2 * area), abs=TOLERANCE)


@given(positive, st.floats(1e-200, 1e200), st.randoms(use_true_random=False))
def test_neither_scale_nor_order_matters(numbers, scale, rng):
    x = as_float64(numbers)
    expected = gini(x)
    shuffled = list(numbers)
    rng.shuffle(shuffled)
    assert float(gini(as_float64(shuffled))) == pytest.approx(float(expected), abs=TOLERANCE)
    assert float(gini(x * scale)) == pytest.approx(float(expected), abs=TOLERANCE)
    torch.testing.assert_close(lorenz_curve(x * scale), lorenz_curve(x), rtol=0, atol=TOLERANCE)


@given(values)
def test_range(numbers):
    n = len(numbers)
    assert -TOLERANCE <= float(gini(as_float64(numbers))) <= (n - 1) / n + TOLERANCE


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_extremes(n):
    one = torch.zeros(n, dtype=torch.float64)
    one[n // 2] = 3.0
    assert float(gini(one)) == pytest.approx((n - 1) / n, abs=TOLERANCE)
    assert float(gini(torch.full((n,), 0.1))) == pytest.approx(0, abs=TOLERANCE)


def test_all_zeros_are_equal():
    assert gini(torch.zeros(4)) == 0
    assert torch.equal(lorenz_curve(torch.zeros(4)), torch.linspace(0, 1, 5))


def test_rows_are_independent():
    x = torch.rand(3, 2, 7, generator=torch.Generator().manual_seed(0))
    x[1, 1] = 0
    coefficients, curves = gini(x), lorenz_curve(x)
    assert coefficients.shape == (3, 2)
    assert curves.shape == (3, 2, 8)
    for i in range(3):
        for j in range(2):
            assert coefficients[i, j] == gini(x[i, j])
            assert torch.equal(curves[i, j], lorenz_curve(x[i, j]))


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1.7e308])
def test_values_at_the_ends_of_float64(scale):
    x = as_float64([1.0, 1.0, 0.0, 0.0]) * scale
    assert float(gini(x)) == pytest.approx(0.5, abs=TOLERANCE)
    expected = as_float64([0, 0, 0, 0.5, 1])
    torch.testing.assert_close(lorenz_curve(x), expected, rtol=0, atol=TOLERANCE)


def test_scales_of_rows_do_not_mix():
    x = as_float64([[1.0, 3.0], [1e-300, 3e-300]])
    assert float(gini(x)[1]) == pytest.approx(0.25, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("given_values", "dtype"),
    [
        ([1, 3], torch.float32),
        ((1.0, 3.0), torch.float32),
        (torch.tensor([1, 3]), torch.float32),
        (torch.tensor([1.0, 3.0]).half(), torch.float32),
        (torch.tensor([1.0, 3.0]).bfloat16(), torch.float32),
        (np.array([1.0, 3.0], dtype=np.float32), torch.float32),
        (np.array([1.0, 3.0]), torch.float64),
        (torch.tensor([1.0, 3.0], dtype=torch.float64), torch.float64),
        (torch.tensor([1.0, 3.0], requires_grad=True), torch.float32),
    ],
)
def test_whatever_holds_numbers(given_values, dtype):
    assert gini(given_values).dtype == dtype
    assert float(gini(given_values)) == pytest.approx(0.25, abs=TOLERANCE)
    assert not gini(given_values).requires_grad
    assert lorenz_curve(given_values).dtype == dtype
    assert lorenz_curve(given_values).tolist() == pytest.approx([0, 0.25, 1], abs=TOLERANCE)


def test_a_million_float32_values_are_summed_in_float64():
    x = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) + 1000
    exact = gini(x.double())
    # One rounding to float32 at the end.
    assert float(gini(x)) == pytest.approx(float(exact), rel=torch.finfo(torch.float32).eps)


def test_the_curve_of_float32_values_is_summed_in_float64():
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 1000
    assert torch.equal(lorenz_curve(x), lorenz_curve(x.double()).float())


@given(values, st.data())
def test_whole_weights_are_repetitions(numbers, data):
    n = len(numbers)
    weights = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    repeated = as_float64(numbers).repeat_interleave(torch.tensor(weights))
    found = float(gini(as_float64(numbers), weights))
    assert found == pytest.approx(float(gini(repeated)), abs=TOLERANCE)


def test_each_row_has_its_weights():
    x, weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.5, 0.5]])
    assert gini(x, weights).tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1.0], r"weights must have the shape of values, \(2,\), and not all .* got \(1,\)"),
        ([0.0, 0.0], r"not all be zero in a row"),
        ([1.0, -1.0], r"weights must be nonnegative, got -1\.0"),
        ([1.0, float("nan")], r"weights must be finite"),
        ([], r"weights must hold at least one value"),
    ],
)
def test_weights_that_are_none(weights, text):
    with pytest.raises(ValueError, match=text):
        gini([1.0, 2.0], weights)


def test_one_row_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="not all be zero in a row"):
        gini(torch.ones(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_autocast_does_not_round():
    x = torch.rand(100, generator=torch.Generator().manual_seed(0))
    expected = gini(x), lorenz_curve(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gini(x), expected[0])
        assert torch.equal(lorenz_curve(x), expected[1])


def test_the_values_stay_as_they_are():
    x = torch.tensor([3.0, 1.0, 2.0])
    gini(x)
    lorenz_curve(x)
    assert x.tolist() == [3, 1, 2]


@pytest.mark.parametrize("function", [gini, lorenz_curve])
@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ([], r"values must hold at least one value .* got \(0,\)"),
        (3.0, r"values must hold at least one value in shape \(\.\.\., n\), got \(\)"),
        ([1.0, -2.0], r"values must be nonnegative, got -2\.0; take norms or absolute values"),
        ([1.0, float("nan")], r"values must be finite, got NaN .* leave those examples out"),
        ([1.0, float("inf")], r"values must be finite"),
    ],
)
def test_errors_say_what_to_do(function, bad, text):
    with pytest.raises(ValueError, match=text):
        function(bad)
