"""Metrics over the examples of a data set, against a loop over single examples."""

import math

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torch import nn
from torch.nn import functional as F

from memtools import find_critical, metrics

GINIS = ["InputGradientGini", "ParameterGradientGini", "ScoreGini"]
SPLITS = [
    [list(range(12))],
    [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11]],
    [[11, 3], [5, 0, 1, 2], [4, 6, 10, 9, 8, 7]],
    [[0, 1, 2, 3, 4, 5, 5], [6, 7, 8, 8, 9], [10, 11, 0, 1]],
]


@pytest.fixture(params=GINIS)
def of_examples(request, cases, oracles):
    """A metric, and the values of the single examples under it."""
    model, (inputs, targets) = cases.network(), cases.data()
    values = {
        "InputGradientGini": oracles.input_gradient_norms(model, inputs, targets),
        "ParameterGradientGini": oracles.parameter_gradient_norms(model, inputs, targets),
        "ScoreGini": inputs.square().sum(1),
    }[request.param]
    return cases.MEASURES[request.param], values.tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_gini_does_not_depend_on_batches_order_and_duplicates(of_examples, split, cases, oracles):
    measure, values = of_examples
    metric = cases.updated(measure.build(), measure, *split)
    result = metric.compute()
    assert result.shape == ()
    assert float(result) == pytest.approx(cases.naive_gini(values), rel=oracles.FLOAT64)
    torch.testing.assert_close(metric.means().tolist(), values, rtol=oracles.FLOAT64, atol=0)


def test_examples_that_were_not_seen_do_not_count(of_examples, cases, oracles):
    measure, values = of_examples
    metric = cases.updated(measure.build(), measure, [1, 4], [7])
    expected = cases.naive_gini([values[i] for i in (1, 4, 7)])
    assert float(metric.compute()) == pytest.approx(expected, rel=oracles.FLOAT64)
    assert metric.means().isnan().sum() == cases.N - 3


def test_over_epochs_it_is_the_gini_of_the_mean(cases, oracles):
    """Of the running mean, and not the mean of the Ginis."""
    (inputs, targets), everything = cases.data(), torch.arange(cases.N)
    models = [cases.network(), nn.Linear(4, 3).double()]
    metric = metrics.InputGradientGini(cases.N)
    for model in models:
        metric.update(model, inputs, targets, everything)
    norms = [oracles.input_gradient_norms(model, inputs, targets) for model in models]
    mean = ((norms[0] + norms[1]) / 2).tolist()
    assert float(metric.compute()) == pytest.approx(cases.naive_gini(mean), rel=oracles.FLOAT64)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_settings_reach_the_function(p, cases, oracles):
    model, (inputs, targets) = cases.network(), cases.data()

    def squared(logits, y):
        return (logits - F.one_hot(y, logits.shape[-1])).square().sum(-1)

    metric = metrics.InputGradientGini(cases.N, loss_fn=squared, p=p, chunk_size=5)
    metric.update(model, inputs, targets, torch.arange(cases.N))
    values = oracles.input_gradient_norms(model, inputs, targets, loss=squared, p=p)
    expected = cases.naive_gini(values.tolist())
    assert float(metric.compute()) == pytest.approx(expected, rel=oracles.FLOAT64)

    weights = metrics.ParameterGradientGini(cases.N, loss_fn=squared, chunk_size=5)
    weights.update(model, inputs, targets, torch.arange(cases.N))
    values = oracles.parameter_gradient_norms(model, inputs, targets, loss=squared)
    expected = cases.naive_gini(values.tolist())
    assert float(weights.compute()) == pytest.approx(expected, rel=oracles.FLOAT64)


def test_tokens_go_through_the_named_embedding(cases):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.head(self.words(tokens).mean(1))

    metric = metrics.InputGradientGini(5, embedding="words")
    metric.update(Tokens(), torch.arange(35).reshape(5, 7) % 7, torch.arange(5) % 3, range(5))
    assert 0 <= metric.compute() < 1


@pytest.mark.parametrize("split", SPLITS)
def test_critical_ratio_counts_examples_once(split, cases):
    measure = cases.MEASURES["CriticalSampleRatio by index"]
    found = cases.critical(range(cases.N))
    assert 0 < sum(found) < cases.N
    metric = cases.updated(measure.build(), measure, *split)
    assert float(metric.compute()) == pytest.approx(sum(found) / cases.N)
    assert metric.means().tolist() == found


@pytest.mark.parametrize("split", SPLITS)
def test_critical_ratio_without_indices_counts_what_comes(split, cases):
    measure = cases.MEASURES["CriticalSampleRatio"]
    found = cases.critical([i for batch in split for i in batch])
    metric = cases.updated(measure.build(), measure, *split)
    assert float(metric.compute()) == pytest.approx(sum(found) / len(found))
    assert metric.sums.numel() == metric.counts.numel() == 1


def test_critical_ratio_takes_the_options_of_the_search(cases):
    (inputs, _), model = cases.data(), cases.network()
    bounds = (float(inputs.min()), float(inputs.max()))
    options = {
        "lass": {
            "step_size": 0.1,
            "noise": torch.tensor(0.01),
            "max_steps": 3,
            "gradient_at": "start",
            "bounds": bounds,
        },
        "auto": {"method": "auto", "effort": 0.5},
    }
    for given in options.values():
        metric = metrics.CriticalSampleRatio(0.4, batch_size=5, **given)
        metric.update(model, inputs)
        search = find_critical(model, inputs, radius=0.4, **given)
        assert float(metric.compute()) == pytest.approx(float(search.ratio))


@pytest.mark.parametrize("kind", [list, torch.Tensor.int, torch.Tensor.numpy])
def test_indices_may_be_of_any_integer_kind(kind):
    metric = metrics.ScoreGini(4)
    metric.update([0.0, 3.0], kind(torch.tensor([2, 0])))
    torch.testing.assert_close(
        metric.means(), torch.tensor([3, math.nan, 0, math.nan]).double(), equal_nan=True
    )


def test_an_empty_batch_of_scores_adds_nothing():
    metric = metrics.ScoreGini(4)
    metric.update([1.0], [2])
    metric.update(torch.empty(0), torch.empty(0, dtype=torch.int64))
    metric.update([], [])
    assert metric.counts.tolist() == [0, 0, 1, 0]


def test_scores_that_need_a_gradient_are_not_kept_alive():
    metric, values = metrics.ScoreGini(2), torch.tensor([1.0, 3.0], requires_grad=True)
    assert not metric(values, [0, 1]).requires_grad
    assert not metric.sums.requires_grad


def test_equal_and_zero_scores_are_spread_evenly():
    for value in (0.0, 2.5):
        metric = metrics.ScoreGini(3)
        metric.update([value] * 3, range(3))
        assert float(metric.compute()) == pytest.approx(0, abs=1e-15)
