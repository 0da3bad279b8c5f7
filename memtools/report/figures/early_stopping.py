"""The figures of the study of early stopping."""

from collections.abc import Callable
from typing import Any

import numpy as np

from memtools.report.drawing import Figure
from memtools.studies.conditions import Condition
from memtools.studies.early_stopping.config import CONDITIONS
from memtools.studies.early_stopping.outcomes import RANDOM, Outcomes
from memtools.studies.early_stopping.rules import LABEL_FREE
from memtools.studies.early_stopping.summary import TITLES

__all__ = ["FIGURES"]

# Okabe and Ito's colours, and dashes that say the same without colour.
CURVES: dict[str, tuple[str, str, Any]] = {
    "test_accuracy": ("test accuracy", "#000000", "solid"),
    "csr_validation": ("critical share, held out", "#0072B2", (0, (6, 1.5))),
    "csr_train": ("critical share, training", "#56B4E9", (0, (2, 1))),
    "gini_instantaneous": ("Gini of the moment", "#D55E00", (0, (4, 1.5, 1, 1.5))),
}

MARKS = {
    "validation": ("*", "#000000"),
    "csr_jump": ("^", "#0072B2"),
    "csr_minimum": ("v", "#0072B2"),
    "csr_train_maximum": ("s", "#56B4E9"),
    "gini_turn": ("D", "#D55E00"),
    "gini_maximum": ("P", "#D55E00"),
}

SHORT = {
    "validation": "validation accuracy",
    "csr_jump": "held out: before its rise",
    "csr_minimum": "held out: lowest",
    "csr_train_maximum": "training: highest",
    "gini_turn": "Gini: first turn",
    "gini_maximum": "Gini: highest",
}

COLORS = {"label-free": "#0072B2", "other": "#777777"}


def _curves(condition: Condition) -> Callable[[Any, Outcomes], None]:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        outcome = outcomes[condition.key]
        epochs = outcome.curves["epoch"][0]
        for name, (title, color, dashes) in CURVES.items():
            curve = outcome.curves[name][0]
            axes.plot(epochs, curve, color=color, linestyle=dashes, linewidth=1.4, label=title)
        for key, (mark, color) in MARKS.items():
            place = outcome.chosen[key][0]
            axes.plot(
                epochs[place],
                outcome.curves["test_accuracy"][0, place],
                mark,
                color=color,
                markersize=9,
                markeredgecolor="white",
                linestyle="none",
                label=SHORT[key],
                clip_on=False,
                zorder=4,
            )
        axes.set_xlabel("epochs of training")
        axes.set_ylabel("share, or Gini coefficient")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 1.02)

    return draw


def _regrets(condition: Condition) -> Callable[[Any, Outcomes], None]:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        regrets = outcomes[condition.key].regrets
        ranked = sorted(TITLES, key=lambda key: -regrets[key].mean())
        for row, key in enumerate(ranked):
            color = COLORS["label-free" if key in LABEL_FREE else "other"]
            values = 100 * regrets[key]
            axes.plot([0, values.mean()], [row, row], color="#bbbbbb", linewidth=1, zorder=1)
            axes.plot(values, np.full(len(values), row), "o", color=color, alpha=0.6, zorder=2)
            axes.plot(values.mean(), row, "|", color=color, markersize=12, zorder=3)
        names = ["random epoch" if key == RANDOM else TITLES[key] for key in ranked]
        axes.set_yticks(range(len(ranked)), names, fontsize=6.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("points given away, each seed")

    return draw


FIGURES = (
    *(
        Figure(
            f"regret-{condition.key}",
            f"What each rule costs: {condition.title}",
            "Test accuracy at the best epoch less that at the epoch that the rule chooses. Dots "
            "are seeds, bars their means; blue rules need no labels and are judged.",
            _regrets(condition),
        )
        for condition in CONDITIONS
    ),
    *(
        Figure(
            f"curves-{condition.key}",
            f"What rules see: {condition.title}",
            "One training, that of the first seed. Marks on the test accuracy, which no rule sees, "
            "are the epochs that rules choose.",
            _curves(condition),
        )
        for condition in CONDITIONS
    ),
)
