import math
from statistics import variance

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from memtools.metrics import MisclassificationRate


def told(metric, wrong):
    """Update with a matrix of runs and examples, in batches."""
    for run in wrong:
        for part in torch.arange(len(run)).split(300):
            metric.update(torch.eye(2)[run[part].long()], torch.zeros(len(part)).long(), part)
    return metric.compute()


def draws(runs, chances):
    draw = torch.Generator().manual_seed(5)
    return torch.rand(runs, len(chances), generator=draw) < chances


def test_agrees_with_a_loop():
    wrong = draws(20, torch.linspace(0.1, 0.8, 700))
    rates = [sum(bool(run[i]) for run in wrong) / 20 for i in range(700)]
    mean = sum(rates) / 700
    result = told(MisclassificationRate(700), wrong)
    assert result["rates"].tolist() == pytest.approx(rates)
    assert float(result["mean"]) == pytest.approx(mean)
    expected = variance(rates) / (mean * (1 - mean) / 20)
    assert float(result["overdispersion"]) == pytest.approx(expected)


def test_binomial_draws_have_overdispersion_one():
    """The statistic times n - 1 is nearly chi-squared with n - 1 degrees: 4 deviations."""
    n = 1000
    result = told(MisclassificationRate(n), draws(50, torch.full((n,), 0.3)))
    assert abs(float(result["overdispersion"]) - 1) < 4 * math.sqrt(2 / (n - 1))


def test_easy_and_hard_examples_have_the_largest():
    wrong = (torch.arange(10) < 4).expand(8, 10)
    result = told(MisclassificationRate(10), wrong)
    assert float(result["overdispersion"]) == pytest.approx(8 * 10 / 9)


def test_examples_may_have_different_numbers_of_runs():
    metric = MisclassificationRate(4)
    told(metric, torch.tensor([[True, False, True]]))
    result = told(metric, torch.tensor([[True, True], [False, True]]))
    rates, runs = [2 / 3, 2 / 3, 1.0], [3, 3, 1]
    assert result["rates"][:3].tolist() == pytest.approx(rates)
    assert result["rates"][3].isnan()
    mean = 5 / 7
    expected = variance(rates) / (mean * (1 - mean) * sum(1 / r for r in runs) / 3)
    assert float(result["overdispersion"]) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [torch.ones(3, 4), torch.zeros(3, 4), torch.ones(3, 1)])
def test_where_there_is_no_spread_overdispersion_is_nan(wrong):
    result = told(MisclassificationRate(4), wrong.bool())
    assert result["overdispersion"].isnan()
    assert result["mean"] == wrong.mean()
