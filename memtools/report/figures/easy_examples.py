"""The figures of the study of easy examples."""

from typing import Any

import numpy as np

from memtools.extras import require
from memtools.report.drawing import STYLES, Figure, band
from memtools.studies.conditions import RANDOM_INPUTS
from memtools.studies.easy_examples.summary import Outcome

__all__ = ["FIGURES"]

BINS = 20

Outcomes = dict[str, Outcome]


def _sorted(axes: Any, outcomes: Outcomes) -> None:
    for outcome in outcomes.values():
        n = outcome.shares.shape[1]
        band(axes, outcome.condition, 100 * (np.arange(n) + 0.5) / n, 100 * outcome.shares)
    noise = outcomes[RANDOM_INPUTS.key]
    n, networks = noise.shares.shape[1], noise.networks
    quantiles = require("scipy.stats").binom.ppf(
        (np.arange(n) + 0.5) / n, networks, float(noise.final("mean_share_right").mean())
    )
    axes.plot(
        100 * (np.arange(n) + 0.5) / n,
        100 * quantiles / networks,
        color="#555555",
        linestyle=(0, (1, 2)),
        label="chance, mean of random inputs",
    )
    axes.set_xlabel("examples from the hardest to the easiest (%)")
    axes.set_ylabel("networks that are right (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(-2, 102)


def _histogram(axes: Any, outcomes: Outcomes) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    middles = 100 * (edges[:-1] + edges[1:]) / 2
    for outcome in outcomes.values():
        counts = np.array([np.histogram(shares, edges)[0] for shares in outcome.shares])
        band(axes, outcome.condition, middles, 100 * counts / outcome.shares.shape[1])
    axes.set_xlabel("networks that are right (%)")
    axes.set_ylabel("examples (%)")
    axes.set_ylim(bottom=0)


def _spread(axes: Any, outcomes: Outcomes) -> None:
    for place, (key, outcome) in enumerate(outcomes.items()):
        color, _ = STYLES[key]
        for name, marker, shift in (
            ("over_dispersion", "o", -0.1),
            ("over_dispersion_within_classes", "x", 0.1),
        ):
            values = outcome.final(name)
            axes.plot(np.full(len(values), place + shift), values, marker, color=color)
    noise = outcomes[RANDOM_INPUTS.key]
    low, high = (float(noise.final(f"binomial_{end}").mean()) for end in ("low", "high"))
    axes.axhspan(low, high, color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.set_yscale("log")
    axes.set_xticks(range(len(outcomes)), [o.condition.title for o in outcomes.values()])
    axes.set_ylabel("over-dispersion")


FIGURES = (
    Figure(
        "shares",
        "Which share of the networks is right?",
        "Examples in order of how many networks get them right. Where all are equally hard, the "
        "line is that of chance.",
        _sorted,
    ),
    Figure(
        "histogram",
        "How many examples are easy, how many hard?",
        "Share of the examples by the share of networks that are right.",
        _histogram,
    ),
    Figure(
        "over-dispersion",
        "How much more than by chance do examples differ?",
        "Variance of the share of networks that are right over that of independent draws, each "
        "seed: circles for all examples, crosses among examples of one label. Grey: 99% of what "
        "independent draws give.",
        _spread,
    ),
)
