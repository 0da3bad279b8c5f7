"""Every metric with a small data set, and obviously right versions of what they sum up."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from memtools import find_critical, metrics

N, CLASSES, RADIUS = 12, 3, 0.2


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double()


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, 4, generator=draw).double(), torch.arange(N) % CLASSES


def logits() -> Tensor:
    with torch.no_grad():
        return network()(data()[0])


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        build: Builds it; takes the settings of torchmetrics.
        other: Builds one that measures something else.
        arguments: What ``update`` takes for some examples, by name.
        counts_examples: Whether an example that is seen twice counts once.
    """

    build: Callable[..., Any]
    other: Callable[..., Any]
    arguments: Callable[[Tensor], dict[str, Any]]
    counts_examples: bool = True


def of_model(*names: str) -> Callable[[Tensor], dict[str, Any]]:
    def arguments(chosen: Tensor) -> dict[str, Any]:
        inputs, targets = data()
        given = {"inputs": inputs[chosen], "targets": targets[chosen], "indices": chosen}
        return {"model": network(), **{name: given[name] for name in names}}

    return arguments


def of_logits(*names: str) -> Callable[[Tensor], dict[str, Any]]:
    def arguments(chosen: Tensor) -> dict[str, Any]:
        given = {"targets": data()[1][chosen], "indices": chosen}
        return {"logits": logits()[chosen], **{name: given[name] for name in names}}

    return arguments


def scores(chosen: Tensor) -> dict[str, Any]:
    return {"values": data()[0].square().sum(1)[chosen], "indices": chosen}


MEASURES = {
    "ClassSensitivity": Measure(
        lambda **k: metrics.ClassSensitivity(CLASSES, **k),
        lambda **k: metrics.ClassSensitivity(CLASSES + 1, **k),
        of_model("inputs", "targets"),
        counts_examples=False,
    ),
    "CriticalSampleRatio": Measure(
        lambda **k: metrics.CriticalSampleRatio(RADIUS, **k),
        lambda **k: metrics.CriticalSampleRatio(10 * RADIUS, **k),
        of_model("inputs"),
        counts_examples=False,
    ),
    "CriticalSampleRatio by index": Measure(
        lambda **k: metrics.CriticalSampleRatio(RADIUS, num_examples=N, **k),
        lambda **k: metrics.CriticalSampleRatio(RADIUS, num_examples=N, method="auto", **k),
        of_model("inputs", "indices"),
    ),
    "InputGradientGini": Measure(
        lambda **k: metrics.InputGradientGini(N, **k),
        lambda **k: metrics.InputGradientGini(N, p=2, **k),
        of_model("inputs", "targets", "indices"),
    ),
    "MisclassificationRate": Measure(
        lambda **k: metrics.MisclassificationRate(N, **k),
        lambda **k: metrics.MisclassificationRate(N + 1, **k),
        of_logits("targets", "indices"),
        counts_examples=False,
    ),
    "ParameterGradientGini": Measure(
        lambda **k: metrics.ParameterGradientGini(N, **k),
        lambda **k: metrics.ParameterGradientGini(N, allow_random=True, **k),
        of_model("inputs", "targets", "indices"),
    ),
    "ScoreGini": Measure(
        lambda **k: metrics.ScoreGini(N, **k),
        lambda **k: metrics.ScoreGini(N + 1, **k),
        scores,
    ),
    "TimeToConvergence": Measure(
        lambda **k: metrics.TimeToConvergence(0.5, **k),
        lambda **k: metrics.TimeToConvergence(0.6, **k),
        of_logits("targets"),
        counts_examples=False,
    ),
}


def updated(metric: Any, measure: Measure, *batches: list[int]) -> Any:
    for batch in batches:
        metric.update(**measure.arguments(torch.tensor(batch)))
    return metric


def naive_gini(values: list[float]) -> float:
    """Half the mean difference of all pairs, relative to the mean."""
    n = len(values)
    differences = sum(abs(a - b) for a in values for b in values)
    return differences / (2 * n * sum(values))


def critical(chosen: Iterable[int], radius: float = RADIUS) -> list[float]:
    """Whether each example is critical, each searched alone."""
    return [_is_critical(i, radius) for i in chosen]


@cache
def _is_critical(i: int, radius: float) -> float:
    return float(find_critical(network(), data()[0][i : i + 1], radius=radius).is_critical)


def as_lists(result: Any) -> Any:
    """A result of ``compute`` in lists and numbers."""
    if isinstance(result, dict):
        return {name: as_lists(value) for name, value in result.items()}
    return result.tolist()


def assert_same(result: Any, expected: Any) -> None:
    """Equal up to sums of float64 in another order."""
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
