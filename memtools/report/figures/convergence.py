"""The figures of the study of convergence."""

from collections.abc import Callable
from typing import Any

import numpy as np

from memtools.report.drawing import STYLES, Figure
from memtools.studies.convergence.experiment import MIXED
from memtools.studies.convergence.summary import Outcomes
from memtools.studies.convergence.times import Times

__all__ = ["FIGURES"]

FEWEST_TICKS = 4

STYLE_OF = STYLES | {MIXED.key: ("#E69F00", (0, (4, 1.5, 1, 1.5)))}


def _times(name: str, unit: str, label: str) -> Callable[[Any, Outcomes], None]:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        for key, outcome in outcomes.items():
            times: Times = getattr(outcome, name)
            values = getattr(times, unit)
            color, dashes = STYLE_OF[key]
            mean = np.exp(np.log(values).mean(0))
            title = outcome.condition.title
            low, high = values.min(0), values.max(0)
            axes.fill_between(times.x, low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(times.x, mean, color=color, linestyle=dashes, label=title)
            unfinished = times.is_censored.any(0)
            for where, marker, inside in ((~unfinished, "o", color), (unfinished, "^", "white")):
                x, y = times.x[where], mean[where]
                axes.plot(x, y, marker, color=color, markerfacecolor=inside, markersize=7)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = getattr(next(iter(outcomes.values())), name).x
        axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
        axes.minorticks_off()
        _plain(axes)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{unit} until all are right")

    return draw


def _plain(axes: Any) -> None:
    """Ticks of the vertical axis as plain round numbers, as many as there is room for."""
    low, high = axes.get_ylim()
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            break
    axes.set_yticks(ticks, [f"{tick:,.10g}" for tick in ticks])


NOTE = (
    "Both axes are logarithmic, means are geometric. Open triangles: not every seed came to have "
    "all examples right, and the mean is a lower bound."
)

FIGURES = (
    Figure(
        "epochs-by-size",
        "More examples: how many epochs?",
        f"Epochs until the network has every training example right, with the largest width. "
        f"{NOTE}",
        _times("by_size", "epochs", "training examples"),
    ),
    Figure(
        "updates-by-size",
        "More examples: how many updates?",
        "The same in updates, of which an epoch has more where there are more examples: the lines "
        "differ from each other as above.",
        _times("by_size", "updates", "training examples"),
    ),
    Figure(
        "epochs-by-width",
        "A wider network: how many epochs?",
        f"Epochs until the network has every training example right, with the largest number of "
        f"examples. {NOTE}",
        _times("by_width", "epochs", "units of a hidden layer"),
    ),
)
