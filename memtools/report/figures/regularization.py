"""The figures of the study of regularisation: one panel each, legible alone."""

from typing import Any

import numpy as np

from memtools.report.drawing import Figure
from memtools.studies.regularization.regularizers import (
    ADVERSARIAL,
    DROPOUT,
    INPUT_NOISE,
    REGULARIZERS,
    WEIGHT_DECAY,
)
from memtools.studies.regularization.summary import Outcomes
from memtools.studies.regularization.tradeoff import memorization_left

__all__ = ["FIGURES"]

# Okabe and Ito's colours; dashes and markers say the same without colour.
STYLES: dict[str, tuple[str, Any, str]] = {
    DROPOUT: ("#0072B2", "solid", "o"),
    "input-dropout": ("#56B4E9", (0, (6, 1.5)), "s"),
    INPUT_NOISE: ("#E69F00", (0, (4, 1.5, 1, 1.5)), "^"),
    "hidden-noise": ("#009E73", (0, (2, 1)), "v"),
    WEIGHT_DECAY: ("#CC79A7", (0, (8, 1.5, 1, 1.5, 1, 1.5)), "D"),
    ADVERSARIAL: ("#D55E00", (0, (3, 1.2)), "P"),
}

SHOWN = 15
"""Points of accuracy below the highest down to which curves are shown."""

PRICES = np.linspace(0.0, 0.1, 41)
"""Accuracies that may be lost."""


def _tradeoff(axes: Any, outcomes: Outcomes) -> None:
    highest = 0.0
    for key, curve in outcomes.curves.items():
        color, dashes, marker = STYLES[key]
        real, random = 100 * curve.real.mean(0), 100 * curve.random.mean(0)
        highest = max(highest, real.max())
        title = REGULARIZERS[key].title
        axes.plot(
            real, random, color=color, linestyle=dashes, marker=marker, markersize=5, label=title
        )
    plain = outcomes.curves[DROPOUT]
    axes.plot(
        *(100 * values[:, 0].mean() for values in (plain.real, plain.random)),
        "o", color="black", markersize=8, zorder=5, linestyle="none", label="none",
    )  # fmt: skip
    axes.axvline(
        100 * (plain.real[:, 0].mean() - outcomes.tolerance), color="#777777", linewidth=1, zorder=1
    )
    axes.set_xlim(highest - SHOWN, highest + 1)
    axes.set_ylim(0, 102)
    axes.set_xlabel("trained on real data: held-out examples right (%)")
    axes.set_ylabel("random labels learnt (%)")


def _left(axes: Any, outcomes: Outcomes) -> None:
    ranked = sorted(REGULARIZERS, key=lambda key: -outcomes.left[key].random.mean())
    for place, key in enumerate(ranked):
        values = 100 * outcomes.left[key].random
        color, _, marker = STYLES[key]
        axes.plot([0, values.mean()], [place, place], color="#bbbbbb", linewidth=1, zorder=1)
        axes.plot(values, np.full(len(values), place), marker, color=color, alpha=0.7)
    titles = [REGULARIZERS[key].title.replace(" + ", " +\n") for key in ranked]
    axes.set_yticks(range(len(ranked)), titles, fontsize=8)
    learnt = 100 * outcomes.curves[DROPOUT].random[:, 0].mean()
    axes.axvline(learnt, color="black", linewidth=1, linestyle="dashed")
    axes.text(learnt - 1, -0.45, "none", ha="right", va="center", fontsize=8)
    axes.set_xlim(0, 102)
    axes.set_ylim(-0.7, len(ranked) - 0.5)
    axes.set_xlabel("random labels learnt (%), each seed")


def _by_price(axes: Any, outcomes: Outcomes) -> None:
    for key, curve in outcomes.curves.items():
        color, dashes, _ = STYLES[key]
        left = np.array([memorization_left(curve, price).random for price in PRICES])
        axes.plot(
            100 * PRICES,
            100 * left.mean(1),
            color=color,
            linestyle=dashes,
            label=REGULARIZERS[key].title,
        )
    axes.axvline(100 * outcomes.tolerance, color="#777777", linewidth=1, zorder=1)
    axes.set_xlim(0, 100 * PRICES[-1])
    axes.set_ylim(0, 102)
    axes.set_xlabel("accuracy on real data that may be lost (points)")
    axes.set_ylabel("random labels learnt (%)")


def _by_strength(name: str, label: str) -> Any:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        longest = 0
        for key, curve in outcomes.curves.items():
            color, dashes, marker = STYLES[key]
            values, places = 100 * getattr(curve, name), np.arange(len(curve.strengths))
            longest = max(longest, len(places) - 1)
            axes.fill_between(
                places, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0
            )
            axes.plot(
                places,
                values.mean(0),
                color=color,
                linestyle=dashes,
                marker=marker,
                markersize=4,
                label=REGULARIZERS[key].title,
            )
        axes.set_xticks(range(longest + 1), ["none", *map(str, range(1, longest + 1))])
        axes.set_xlabel("strength, from the weakest (1) that was tried")
        axes.set_ylabel(label)
        axes.set_ylim(0, 102)

    return draw


FIGURES = (
    Figure(
        "tradeoff",
        "Cost on real data, memorisation of noise",
        "Each point is a strength, the black one no regularisation: further down, fewer random "
        "labels are memorised; further left, more accuracy on real data is lost. The grey line is "
        "the common accuracy. What costs more than 15 points is not shown.",
        _tradeoff,
    ),
    Figure(
        "left",
        "Memorisation left at a common accuracy",
        "Share of the random labels that are learnt where the price in accuracy on real data is "
        "the same; the dashed line is no regularisation.",
        _left,
    ),
    Figure(
        "by-price",
        "Memorisation left, by what may be lost",
        "The same for other prices, of which the grey line is the one that verdicts are about: "
        "mean over the seeds.",
        _by_price,
    ),
    Figure(
        "real",
        "Accuracy on real data, by strength",
        "Trained and evaluated on real labels. The strengths themselves are in the table.",
        _by_strength("real", "held-out examples right (%)"),
    ),
    Figure(
        "random",
        "Random labels learnt, by strength",
        "Trained on random labels: share of the training examples that get theirs.",
        _by_strength("random", "random labels learnt (%)"),
    ),
)
