"""The figures of the study of pruning: one panel each, legible alone."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.report.drawing import Figure
from memtools.studies.conditions import Condition
from memtools.studies.pruning.config import CONDITIONS
from memtools.studies.pruning.methods import METHODS
from memtools.studies.pruning.outcomes import Outcomes

__all__ = ["FIGURES"]

# Okabe and Ito's colours (black last), and dashes that say the same without colour.
STYLES: dict[str, tuple[str, Any]] = {
    "sensitivity": ("#0072B2", "solid"),
    "input_gradient": ("#CC79A7", (0, (2, 1))),
    "el2n": ("#E69F00", (0, (4, 1.5, 1, 1.5))),
    "grand": ("#D55E00", (0, (1, 1))),
    "forgetting": ("#56B4E9", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    "aum": ("#009E73", (0, (6, 1.5))),
    "csl": ("#000000", (0, (3, 2))),
}

Draw = Callable[[Any, Outcomes], None]


def _line(axes: Any, score: str, x: NDArray[Any], values: NDArray[Any]) -> None:
    """The mean over seeds of one score; a band for the one that the study is about."""
    color, dashes = STYLES[score]
    is_own = score == "sensitivity"
    if is_own:
        axes.fill_between(
            x, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0, zorder=1
        )
    axes.plot(
        x,
        values.mean(0),
        color=color,
        linestyle=dashes,
        linewidth=2.4 if is_own else 1.4,
        marker="o",
        markersize=3.5 if is_own else 2,
        label=METHODS[score].title,
        zorder=3 if is_own else 2,
    )


def _zero(axes: Any) -> None:
    axes.axhline(0, color="#777777", linewidth=1, zorder=1)


def _by_share(condition: Condition, kind: str) -> Draw:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        shares = sorted(outcomes.config.shares)
        _zero(axes)
        for score in METHODS:
            gains = [outcomes.gain(condition, kind, score, share) for share in shares]
            _line(axes, score, 100 * np.array(shares), 100 * np.stack(gains, axis=1))
        axes.set_xticks([100 * share for share in shares])
        axes.set_xlabel(f"{kind} examples dropped (%)")
        axes.set_ylabel("accuracy over random (points)")

    return draw


def _windows(condition: Condition) -> Draw:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        config = outcomes.config
        share, positions = 1 - config.window_width, sorted(config.window_positions)
        _zero(axes)
        for score in METHODS:
            gains = [outcomes.gain(condition, "window", score, share, p) for p in positions]
            middles = 100 * (np.array(positions) + config.window_width / 2)
            _line(axes, score, middles, 100 * np.stack(gains, axis=1))
        axes.set_xlabel("middle of the window (%), from easy to hard")
        axes.set_ylabel("accuracy over random (points)")

    return draw


def _areas(axes: Any, outcomes: Outcomes) -> None:
    noisy = [condition for condition in CONDITIONS if condition.labels]
    levels = 100 * np.array([condition.labels for condition in noisy])
    for score in METHODS:
        areas = [outcomes.area(condition, score) for condition in noisy]
        _line(axes, score, levels, np.stack(areas, axis=1))
    axes.set_xticks(levels)
    axes.set_xlabel("random labels (%)")
    axes.set_ylabel("area under the ROC curve")
    axes.set_ylim(top=1.005)


def _figures(
    name: str, title: str, caption: str, draw: Callable[[Condition], Draw]
) -> Iterator[Figure]:
    for condition in CONDITIONS:
        yield Figure(
            f"{name}-{condition.key}", f"{title}: {condition.title}", caption, draw(condition)
        )


FIGURES = (
    *_figures(
        "hardest",
        "Without the hardest",
        "Held-out accuracy at the last update above that of networks trained without as many "
        "random examples, which is 0; each score drops what is hardest by it. The band is that of "
        "the loss sensitivity.",
        lambda condition: _by_share(condition, "hardest"),
    ),
    Figure(
        "auroc",
        "Which score finds random labels?",
        "How often an example with a random label ranks as harder than one with its own: one half "
        "is chance, 1 is always.",
        _areas,
    ),
    *_figures(
        "easiest",
        "Without the easiest",
        "The same when each score drops what is easiest by it.",
        lambda condition: _by_share(condition, "easiest"),
    ),
    *_figures(
        "windows",
        "Sliding window",
        "The same for networks that are trained on a window of the examples alone, from the "
        "easiest on the left to the hardest on the right.",
        _windows,
    ),
)
