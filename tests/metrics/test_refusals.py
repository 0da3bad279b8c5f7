"""What is refused, in which words, and that a refusal changes nothing."""

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torch import nn

from memtools import metrics

N = 12


def state_of(metric):
    return {name: value.clone() for name, value in metric.metric_state.items()}


@pytest.fixture(params=["update", "forward"])
def refuses(request, cases):
    """A function that calls a metric and checks that it raises, and that nothing has changed."""

    def check(name, error, message, **changes):
        measure = cases.MEASURES[name]
        metric = cases.updated(measure.build(), measure, [0, 1, 2, 3, 4, 5])
        before, count, value = state_of(metric), metric.update_count, metric.compute()
        arguments = measure.arguments(torch.tensor([6, 7])) | changes
        with pytest.raises(error, match=message):
            getattr(metric, request.param)(**arguments)
        assert metric.update_count == count
        after = state_of(metric)
        assert all(torch.equal(before[key], after[key]) for key in before)
        cases.assert_same(metric.compute(), value)
        fresh = measure.build()
        with pytest.raises(error):
            getattr(fresh, request.param)(**arguments)
        assert not fresh.update_called

    return check


BY_INDEX = [
    "CriticalSampleRatio by index",
    "InputGradientGini",
    "MisclassificationRate",
    "ParameterGradientGini",
    "ScoreGini",
]
INDICES = {
    "large": (
        ValueError,
        r"indices must lie in 0\.\.11 for num_examples=12.* from 7 to 12",
        [7, 12],
    ),
    "negative": (
        ValueError,
        r"indices must lie in 0\.\.11.* from -1 to 7.*whole data set",
        [7, -1],
    ),
    "few": (ValueError, r"one entry for each of the 2 examples.*shape \(1,\)", [7]),
    "matrix": (ValueError, r"one entry for each of the 2 examples.*shape \(2, 1\)", [[7], [8]]),
    "floats": (ValueError, r"indices must be of an integer dtype, got torch\.float32", [7.0, 8.0]),
    "mask": (ValueError, r"indices must be of an integer dtype.*mask\.nonzero", [True, False]),
    "words": (TypeError, r"indices must be a tensor of integers, got str", "seven"),
}


@pytest.mark.parametrize("name", BY_INDEX)
@pytest.mark.parametrize("kind", INDICES)
def test_indices(refuses, name, kind):
    error, message, indices = INDICES[kind]
    refuses(name, error, message, indices=indices)


def test_num_examples_need_indices(refuses):
    message = "indices must be given with num_examples=12, got None"
    refuses("CriticalSampleRatio by index", ValueError, message, indices=None)


OF_MODELS = [
    "ClassSensitivity",
    "CriticalSampleRatio",
    "CriticalSampleRatio by index",
    "InputGradientGini",
    "ParameterGradientGini",
]


@pytest.mark.parametrize("name", OF_MODELS)
def test_models_and_inputs(refuses, name):
    refuses(name, TypeError, r"model must be a torch\.nn\.Module, got int", model=3)
    refuses(name, TypeError, "inputs must be a tensor, got list", inputs=[[0.0] * 4] * 2)
    refuses(name, ValueError, "logits .* NaN", inputs=torch.full((2, 4), torch.nan).double())
    batch_norm = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    if not name.startswith("Critical"):  # which is in eval mode
        refuses(name, ValueError, "couples the examples of a batch", model=batch_norm)


@pytest.mark.parametrize("name", ["ClassSensitivity", "InputGradientGini", "ParameterGradientGini"])
def test_targets(refuses, name):
    refuses(name, ValueError, r"targets must lie in 0\.\.2", targets=torch.tensor([0, 3]))
    refuses(
        name, ValueError, r"targets must have one entry for each of the 2", targets=torch.ones(3)
    )


@pytest.mark.parametrize("name", ["MisclassificationRate", "TimeToConvergence"])
def test_logits(refuses, name):
    refuses(name, ValueError, r"logits must have shape", logits=torch.ones(2))
    refuses(name, ValueError, r"targets must lie in 0\.\.2", targets=torch.tensor([0, 3]))


def test_values(refuses):
    refuses("ScoreGini", ValueError, "values must be nonnegative, got -1", values=[1.0, -1.0])
    refuses("ScoreGini", ValueError, "values must be finite, got nan for ex", values=[0, torch.nan])
    refuses("ScoreGini", ValueError, r"values must be real values of shape \(n,\)", values=3.0)
    refuses("ScoreGini", TypeError, "values must be a tensor of shape", values="high")


@pytest.mark.parametrize("name", ["ClassSensitivity", "InputGradientGini"])
def test_gradients_that_are_infinite(refuses, name):
    class Steep(nn.Module):
        def forward(self, x):
            return x[:, :3].sqrt()  # 0 at 0, where its slope is infinite

    one = {"inputs": torch.zeros(1, 4).double(), "targets": torch.tensor([0])}
    one |= {"indices": [7]} if name == "InputGradientGini" else {}
    refuses(name, ValueError, "gradient norms must be finite", model=Steep(), **one)


@pytest.mark.parametrize(
    "build",
    [
        metrics.InputGradientGini,
        metrics.ParameterGradientGini,
        metrics.ScoreGini,
        metrics.MisclassificationRate,
        lambda n: metrics.CriticalSampleRatio(0.1, num_examples=n),
    ],
)
def test_num_examples(build):
    with pytest.raises(ValueError, match=r"num_examples must be at least 1, got 0.*len\(dataset"):
        build(0)
    with pytest.raises(TypeError, match="num_examples must be a whole number, got float"):
        build(2.5)


def test_other_settings():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        metrics.ClassSensitivity(1)
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold must be above 0 and at most 1"):
            metrics.TimeToConvergence(threshold)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `lenght`"):
        metrics.ScoreGini(3, lenght=2)


def test_num_classes_must_be_those_of_the_model(cases):
    inputs, targets = cases.data()
    with pytest.raises(ValueError, match="num_classes must be the number of logits, 3, got 4"):
        metrics.ClassSensitivity(4).update(cases.network(), inputs, targets)
