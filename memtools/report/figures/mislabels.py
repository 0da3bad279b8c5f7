"""The figures of the study of wrong labels."""

from typing import Any

import numpy as np

from memtools.report.drawing import Figure
from memtools.studies.mislabels.methods import EACH_EPOCH, METHODS
from memtools.studies.mislabels.summary import Outcomes

__all__ = ["FIGURES"]

# Okabe and Ito's colours, and dashes that say the same without colour.
STYLES = {
    "csl": ("#0072B2", "solid"),
    "aum": ("#009E73", (0, (6, 1.5))),
    "el2n": ("#E69F00", (0, (4, 1.5, 1, 1.5))),
    "input_gradient": ("#CC79A7", (0, (2, 1))),
    "last_loss": ("#D55E00", (0, (1, 1))),
}


def _course(axes: Any, outcomes: Outcomes) -> None:
    epochs = outcomes.curves["epoch"][0]
    for method in EACH_EPOCH:
        color, dashes = STYLES[method]
        values = outcomes.curves[f"auroc_{method}"]
        axes.fill_between(
            epochs, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0
        )
        title = "loss of that epoch" if method == "last_loss" else METHODS[method].title
        axes.plot(epochs, values.mean(0), color=color, linestyle=dashes, label=title)
    axes.set_xlabel("epochs of training")
    axes.set_ylabel("area under the ROC curve")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(top=1)


def _areas(axes: Any, outcomes: Outcomes) -> None:
    ranked = sorted(outcomes.areas, key=lambda method: outcomes.areas[method].mean())
    for place, method in enumerate(ranked):
        values = outcomes.areas[method]
        axes.plot([0.5, values.mean()], [place, place], color="#bbbbbb", linewidth=1)
        axes.plot(values, np.full(len(values), place), "o", color="#0072B2", alpha=0.6)
    axes.set_yticks(range(len(ranked)), [METHODS[method].title for method in ranked], fontsize=7.5)
    axes.set_xlim(0.5, 1.005)
    axes.set_xlabel("area under the ROC curve, each seed")


FIGURES = (
    Figure(
        "areas",
        "Which score finds wrong labels?",
        "How often a wrong label ranks above a right one: one half is chance, 1 is always.",
        _areas,
    ),
    Figure(
        "course",
        "How many epochs does it take?",
        "The same for what is known up to an epoch. Scores that look back over the training stay "
        "where they are when the network begins to learn wrong labels by heart; the loss of the "
        "moment does not.",
        _course,
    ),
)
