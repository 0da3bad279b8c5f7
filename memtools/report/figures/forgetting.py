"""The figures of the study of forgetting: one panel each, legible alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from memtools.report.drawing import Figure
from memtools.studies.forgetting.summary import Outcome, title_of

__all__ = ["FIGURES"]

# Okabe and Ito's colours; dashes and markers say the same without colour.
STYLES: tuple[tuple[str, Any, str], ...] = (
    ("#000000", "solid", "o"),
    ("#0072B2", (0, (6, 1.5)), "s"),
    ("#D55E00", (0, (2, 1)), "^"),
    ("#009E73", (0, (4, 1.5, 1, 1.5)), "D"),
    ("#CC79A7", (0, (1, 1)), "v"),
    ("#E69F00", (0, (8, 1.5, 1, 1.5, 1, 1.5)), "P"),
)


def _styled(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, tuple[str, Any, str]]]:
    return [(outcome, STYLES[i % len(STYLES)]) for i, outcome in enumerate(outcomes)]


def _course(name: str) -> Callable[[Any, Sequence[Outcome]], None]:
    def draw(axes: Any, outcomes: Sequence[Outcome]) -> None:
        for outcome, (color, dashes, _) in _styled(outcomes):
            values = 100 * getattr(outcome, name)
            epochs = np.arange(1, values.shape[1] + 1)
            axes.fill_between(
                epochs, values.min(0), values.max(0), color=color, alpha=0.13, linewidth=0
            )
            axes.plot(
                epochs,
                values.mean(0),
                color=color,
                linestyle=dashes,
                label=title_of(outcome.dropout),
            )
        half = outcomes[0].epochs
        axes.axvline(half, color="#777777", linewidth=1)
        axes.text(half, 103, "task A  ", ha="right", fontsize=8, color="#555555")
        axes.text(half, 103, "  task B", ha="left", fontsize=8, color="#555555")
        axes.set_xlabel("epochs of training")
        axes.set_ylabel(f"held-out examples of task {name.upper()} right (%)")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 102)

    return draw


def _plane(axes: Any, outcomes: Sequence[Outcome]) -> None:
    for outcome, (color, dashes, marker) in _styled(outcomes):
        a, b = (100 * values.mean(0) for values in outcome.during_b())
        axes.plot(b, a, color=color, linestyle=dashes, label=title_of(outcome.dropout))
        axes.plot(b[-1:], a[-1:], marker, color=color, markersize=7)
    axes.axvline(100 * outcomes[0].goals.mean(), color="#777777", linewidth=1, zorder=1)
    axes.set_xlabel("held-out examples of task B right (%)")
    axes.set_ylabel("held-out examples of task A right (%)")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)


def _kept(axes: Any, outcomes: Sequence[Outcome]) -> None:
    places = np.arange(len(outcomes))
    for offset, color, marker, values, label in (
        (-0.12, "#0072B2", "o", [o.kept() for o in outcomes], "at equal accuracy on B"),
        (0.12, "#D55E00", "^", [o.a[:, -1] for o in outcomes], "after task B"),
    ):
        for place, of_seeds in zip(places, values, strict=True):
            x = np.full(len(of_seeds), place + offset)
            axes.plot(x, 100 * of_seeds, marker, color=color, alpha=0.45, markersize=5)
        means = [100 * of_seeds.mean() for of_seeds in values]
        axes.plot(places + offset, means, "_", color=color, markersize=22, markeredgewidth=2.5)
        axes.plot([], [], marker, color=color, label=label)
    axes.set_xticks(places, [title_of(outcome.dropout) for outcome in outcomes])
    axes.set_xlim(-0.5, len(outcomes) - 0.5)
    axes.set_ylabel("held-out examples of task A right (%)")
    axes.set_ylim(0, 102)


FIGURES = (
    Figure(
        "task-a",
        "Accuracy on task A",
        "While task A is learnt, and then, right of the line, while task B is.",
        _course("a"),
    ),
    Figure(
        "plane",
        "What is kept of A, by what is learnt of B",
        "The way of the mean over the seeds while task B is learnt, from the upper left to the "
        "marker. Higher is better at every accuracy on B; verdicts at equal accuracy are about "
        "the grey line.",
        _plane,
    ),
    Figure(
        "kept",
        "Kept of task A, by dropout",
        "Each seed, and a bar for the mean; “at equal accuracy” is when the network first reaches "
        "the same accuracy on task B.",
        _kept,
    ),
    Figure(
        "task-b",
        "Accuracy on task B",
        "The same for task B, which is not trained on left of the line.",
        _course("b"),
    ),
)
