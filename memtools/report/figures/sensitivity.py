"""The figures of the sensitivity study: one panel each, legible alone, on a phone and on paper."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from memtools.report.drawing import Figure, over_epochs
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.sensitivity.summary import Outcome, Outcomes

__all__ = ["FIGURES"]

NAMED = 12
"""Classes up to which each has its number on the axes of a matrix."""


def _curve(
    task: str, metric: str, label: str, *, percent: bool = False, log: bool = False
) -> Callable[[Any, Outcomes], None]:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        over_epochs(axes, outcomes[task].values(), metric, label, percent=percent)
        if log:
            axes.set_ylim(auto=True)
            axes.set_yscale("log")
        elif not percent:
            axes.set_ylim(0, _ceiling(outcomes, metric))

    return draw


def _ceiling(outcomes: Outcomes, metric: str) -> float:
    """A top of the axis for all tasks, so that figures can be compared."""
    values = [o.curves[metric].max() for of_task in outcomes.values() for o in of_task.values()]
    return min(1.0, np.ceil(10 * max(values) + 0.5) / 10)


def _matrix(axes: Any, outcomes: Outcomes, *, key: str) -> None:
    from matplotlib.colors import LogNorm

    means = {k: _mean_matrix(outcome) for k, outcome in outcomes["classes"].items()}
    shown = np.concatenate([m[np.isfinite(m) & (m > 0)] for m in means.values()])
    low, high = (shown.min(), shown.max()) if len(shown) else (0.1, 1.0)
    matrix = np.ma.masked_where(~(means[key] > 0), means[key])
    image = axes.imshow(matrix, norm=LogNorm(low, high), cmap="viridis")
    axes.set_xlabel("class of the example that is changed")
    axes.set_ylabel("class whose loss is looked at")
    axes.grid(visible=False)
    axes.set_facecolor("#dddddd")
    if len(means[key]) <= NAMED:
        axes.set_xticks(range(len(means[key])))
        axes.set_yticks(range(len(means[key])))
    axes.figure.colorbar(image, ax=axes, shrink=0.85, label="sensitivity (same scale in all three)")


def _mean_matrix(outcome: Outcome) -> np.ndarray:
    """Geometric mean over the seeds, as the logarithmic scale asks for."""
    assert outcome.matrices is not None
    with np.errstate(divide="ignore"):
        return np.exp(np.log(outcome.matrices).mean(0))


def _of_task(task: str, data: str) -> Iterator[Figure]:
    where = {"classes": "usual classes", "own-class": "every example its own class"}[task]
    yield Figure(
        f"gini-{task}",
        f"Gini coefficient of the sensitivity: {where}",
        "How unequally the loss sensitivity through the training, mean over the evaluation times "
        "so far, is spread over the training examples: 0 all equal, 1 one holds everything.",
        _curve(task, "gini_of_running_mean", "Gini coefficient"),
    )
    yield Figure(
        f"train-accuracy-{task}",
        f"Training accuracy: {where}",
        f"Share of the training examples that get {data}.",
        _curve(task, "train_accuracy", "right on training examples (%)", percent=True),
    )
    yield Figure(
        f"sensitivity-{task}",
        f"Size of the sensitivity: {where}",
        "Mean over the examples of the L1 norm of the derivative of the mean training loss at "
        "that time with respect to their input. A rise by powers of ten means that a small change "
        "of an input sends the training elsewhere; the mean over times then tells of the rise.",
        _curve(task, "mean_sensitivity", "mean loss sensitivity", log=True),
    )


FIGURES = (
    *_of_task("classes", "the label they were given, right or random"),
    *_of_task("own-class", "their own number"),
    *(
        Figure(
            f"classes-{condition.key}",
            f"Sensitivity by class: {condition.title}",
            "How the loss of each class depends on an example of each class, through the training; "
            "geometric mean over the seeds. Grey: no examples.",
            partial(_matrix, key=condition.key),
        )
        for condition in (REAL, RANDOM_LABELS, RANDOM_INPUTS)
    ),
)
