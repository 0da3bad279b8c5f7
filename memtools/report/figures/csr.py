"""The figures of the study of critical samples: one panel each, legible alone and on paper."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from memtools.report.drawing import Figure, band, over_epochs
from memtools.studies.csr.conditions import LEVELS
from memtools.studies.csr.summary import Outcomes

__all__ = ["FIGURES"]


def _curve(kind: str, metric: str, label: str) -> Callable[[Any, Outcomes], None]:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        shown = [outcomes[condition.key] for condition in LEVELS[kind]]
        over_epochs(axes, shown, metric, label)

    return draw


def _by_level(axes: Any, outcomes: Outcomes) -> None:
    for kind, levels in LEVELS.items():
        shares = 100 * np.array([c.labels + c.inputs for c in levels])
        last = np.stack([outcomes[c.key].final("csr_validation") for c in levels], axis=1)
        # In the colour of the highest level.
        band(axes, replace(levels[-1], title=kind), shares, 100 * last)
    axes.set_xlabel("training examples with random label or input (%)")
    axes.set_ylabel("critical held-out examples (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)


def _of_kind(kind: str) -> Iterator[Figure]:
    name = kind.replace(" ", "-")
    around = (
        "" if kind == "random labels" else " Around the inputs that were trained on, random or not."
    )
    yield Figure(
        f"csr-validation-{name}",
        f"Critical samples, held out: {kind}",
        "Share of the held-out examples, all of them real, for which a search finds another "
        "predicted class inside a small box around them: a lower bound.",
        _curve(kind, "csr_validation", "critical held-out examples (%)"),
    )
    yield Figure(
        f"csr-train-{name}",
        f"Critical samples, training: {kind}",
        f"The same for training examples.{around}",
        _curve(kind, "csr_train", "critical training examples (%)"),
    )
    yield Figure(
        f"train-accuracy-{name}",
        f"Training accuracy: {kind}",
        "Share of the training examples that get the label they were given, right or random.",
        _curve(kind, "train_accuracy", "right on training examples (%)"),
    )
    yield Figure(
        f"validation-accuracy-{name}",
        f"Validation accuracy: {kind}",
        "On held-out examples with real inputs and real labels, whatever was trained on.",
        _curve(kind, "validation_accuracy", "right on held-out examples (%)"),
    )


FIGURES = (
    Figure(
        "csr-by-noise",
        "Critical samples, held out, after the last epoch",
        "By the share of the training examples whose label or input is random; 0 is real data.",
        _by_level,
    ),
    *_of_kind("random labels"),
    *_of_kind("random inputs"),
)
