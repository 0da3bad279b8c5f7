"""The figures of the study of capacity."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from memtools.report.drawing import STYLES, Figure
from memtools.studies.capacity.experiment import REMOVED
from memtools.studies.capacity.outcomes import Outcomes
from memtools.studies.capacity.summary import title_of
from memtools.studies.summary import Curves

__all__ = ["FIGURES"]

# From no noise up; more shares than these begin anew.
OF_LEVELS = tuple(style for key, style in STYLES.items() if "inputs" not in key)

OF_KINDS = {
    "inputs": ("#D55E00", "solid"),
    "labels": ("#D55E00", "solid"),
    REMOVED: ("#0072B2", (0, (4, 1.5))),
}

Draw = Callable[[Any, Outcomes], None]


def _against_width(kind: str, which: str) -> Draw:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        values: Mapping[str, Curves] = getattr(outcomes, which)
        widths = outcomes.config.widths
        for place, share in enumerate(outcomes.config.levels):
            color, dashes = OF_LEVELS[place % len(OF_LEVELS)]
            shown = 100 * values[kind][:, place]
            axes.fill_between(
                widths, shown.min(0), shown.max(0), color=color, alpha=0.18, linewidth=0
            )
            axes.plot(
                widths,
                shown.mean(0),
                color=color,
                linestyle=dashes,
                marker="o",
                markersize=3,
                label=f"{share:.0%} {title_of(kind)}" if share else "no noise",
            )
        _widths(axes.xaxis, axes.set_xscale, widths)
        axes.set_xlabel("width of the hidden layers")
        axes.set_ylabel("right on held-out examples (%)")
        axes.set_ylim(0, 102)

    return draw


def _sufficient(kind: str) -> Draw:
    def draw(axes: Any, outcomes: Outcomes) -> None:
        levels = 100 * np.array(outcomes.config.levels)
        for side, one in ((-1, kind), (1, REMOVED)):
            color, dashes = OF_KINDS[one]
            widths = outcomes.sufficient(one)
            for of_seed in widths:
                axes.plot(levels + side * 0.8, of_seed, "o", color=color, alpha=0.35, markersize=4)
            mean = 2 ** np.log2(widths).mean(0)
            axes.plot(levels, mean, color=color, linestyle=dashes, label=title_of(one))
        widths = outcomes.config.widths
        _widths(axes.yaxis, axes.set_yscale, widths)
        axes.set_ylim(widths[0] / 1.3, widths[-1] * 1.3)
        axes.set_xticks(levels)
        axes.set_xlabel(f"{title_of(kind)}, or as many examples removed (%)")
        axes.set_ylabel("smallest sufficient width")

    return draw


def _widths(axis: Any, set_scale: Callable[..., None], widths: tuple[int, ...]) -> None:
    set_scale("log", base=2)
    axis.set_ticks(widths, [str(width) for width in widths])
    axis.minorticks_off()


_BEST = "Best accuracy over the epochs on real examples that were held out"

FIGURES = (
    Figure(
        "sufficient-inputs",
        "How wide is wide enough? Random inputs",
        "Smallest width whose best held-out accuracy is within the tolerance of that of the best "
        "width; points are seeds, lines their geometric means. The narrowest and widest network "
        "tried bound what can be seen.",
        _sufficient("inputs"),
    ),
    Figure(
        "sufficient-labels",
        "How wide is wide enough? Random labels",
        "The same for random labels; without the examples, it is the same control.",
        _sufficient("labels"),
    ),
    Figure(
        "best-inputs",
        "Accuracy by width: random inputs",
        f"{_BEST}.",
        _against_width("inputs", "best"),
    ),
    Figure(
        "best-labels",
        "Accuracy by width: random labels",
        f"{_BEST}.",
        _against_width("labels", "best"),
    ),
    Figure(
        "best-removed",
        "Accuracy by width: examples removed",
        f"{_BEST}, when the examples that are random elsewhere are left out.",
        _against_width(REMOVED, "best"),
    ),
    Figure(
        "last-inputs",
        "Accuracy in the end: random inputs",
        "The same after the last epoch.",
        _against_width("inputs", "last"),
    ),
    Figure(
        "last-labels",
        "Accuracy in the end: random labels",
        "The same after the last epoch.",
        _against_width("labels", "last"),
    ),
)
