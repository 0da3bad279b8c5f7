"""The figures of the memorization study: one panel each, legible alone, on a phone and on paper."""

from collections.abc import Callable
from typing import Any

import numpy as np

from memtools.inequality import lorenz_curve
from memtools.report.drawing import Figure, band, over_epochs
from memtools.studies.memorization.summary import Outcome

__all__ = ["FIGURES"]


def _curve(
    metric: str, label: str, *, percent: bool = True
) -> Callable[[Any, dict[str, Outcome]], None]:
    def draw(axes: Any, outcomes: dict[str, Outcome]) -> None:
        over_epochs(axes, outcomes.values(), metric, label, percent=percent)

    return draw


def _lorenz(axes: Any, outcomes: dict[str, Outcome]) -> None:
    axes.plot([0, 100], [0, 100], color="#777777", linewidth=1, label="all examples equal")
    for outcome in outcomes.values():
        curves = 100 * lorenz_curve(outcome.norms).numpy()
        band(axes, outcome.condition, np.linspace(0, 100, curves.shape[1]), curves)
    axes.set_xlabel("share of the examples, least sensitive first (%)")
    axes.set_ylabel("share of the sensitivity (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)


FIGURES = (
    Figure(
        "train-accuracy",
        "Training accuracy",
        "Share of the training examples that get the label they were given, right or random.",
        _curve("train_accuracy", "right on training examples (%)"),
    ),
    Figure(
        "validation-accuracy",
        "Validation accuracy",
        "On held-out examples with real inputs and real labels, whatever the network was trained "
        "on. A rise and then a fall means: first patterns were learnt, then noise by heart.",
        _curve("validation_accuracy", "right on held-out examples (%)"),
    ),
    Figure(
        "corrupted-accuracy",
        "Fit of the randomised examples",
        "Share of the examples with random labels or inputs that get the label they were given.",
        _curve("corrupted_accuracy", "randomised examples fitted (%)"),
    ),
    Figure(
        "gini",
        "Gini coefficient of the sensitivity",
        "How unequally the sensitivity (L1 norm of the loss gradient with respect to the input, "
        "mean over the epochs so far) is spread over the training examples: 0 all equal, 1 one "
        "example holds everything.",
        _curve("gini_of_running_mean", "Gini coefficient (0 to 1)", percent=False),
    ),
    Figure(
        "lorenz",
        "Lorenz curves after the last epoch",
        "The further a curve hangs below the diagonal, the fewer examples hold most of the "
        "sensitivity. The Gini coefficient is twice the area between the two.",
        _lorenz,
    ),
    Figure(
        "csr-validation",
        "Critical samples, held out",
        "Share of the held-out examples for which a search finds another predicted class inside a "
        "small box around them: a lower bound.",
        _curve("csr_validation", "critical held-out examples (%)"),
    ),
    Figure(
        "csr-train",
        "Critical samples, training",
        "The same for training examples (with random inputs: around those random inputs).",
        _curve("csr_train", "critical training examples (%)"),
    ),
)
