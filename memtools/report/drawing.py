"""What all figures share: style, canvas, files, and curves with bands over seeds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require
from memtools.files import replace_atomically
from memtools.studies.conditions import Condition
from memtools.studies.summary import Outcome

__all__ = ["Figure", "band", "canvas", "draw_figures", "over_epochs", "save"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart, and two that
# are darker, for 60 and 80%; the dashes carry the same information without colour. Random labels
# and random inputs of one share look alike: they are not in one figure.
STYLES = {
    "real": ("#0072B2", "solid"),
    "random-labels-20": ("#E69F00", (0, (6, 1.5))),
    "random-labels-40": ("#D55E00", (0, (4, 1.5, 1, 1.5))),
    "random-labels-60": ("#9C3587", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    "random-labels-80": ("#4B2E83", (0, (3, 2))),
    "random-labels-100": ("#CC79A7", (0, (2, 1))),
    "random-inputs-20": ("#E69F00", (0, (6, 1.5))),
    "random-inputs-40": ("#D55E00", (0, (4, 1.5, 1, 1.5))),
    "random-inputs-60": ("#9C3587", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    "random-inputs-80": ("#4B2E83", (0, (3, 2))),
    "random-inputs-100": ("#009E73", (0, (1, 1))),
}

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
    # Without these two, equal runs would give files that differ.
    "svg.hashsalt": "memtools",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Figure:
    """A figure and what to say under it.

    Attributes:
        name: File name without its ending.
        title: What is shown.
        caption: How to read it.
        draw: Draws the outcomes of the study into axes.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any, Any], None]


def draw_figures(figures: Sequence[Figure], outcomes: Any, folder: Path) -> None:
    """Write every figure as PNG and SVG.

    Args:
        figures: The figures.
        outcomes: What the finished study came to.
        folder: Where the files go.
    """
    folder.mkdir(exist_ok=True)
    for figure in figures:
        with canvas(4.8, 4.1) as page:
            axes = page.subplots()
            figure.draw(axes, outcomes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(
                    loc="upper center", bbox_to_anchor=(0.44, -0.17), ncols=2, columnspacing=1.5
                )
            for ending in (".png", ".svg"):
                save(page, folder / f"{figure.name}{ending}")


def band(axes: Any, condition: Condition, x: NDArray[Any], values: NDArray[Any]) -> None:
    """The mean over seeds as a line, from the lowest to the highest as a band.

    Args:
        axes: Where it is drawn.
        condition: Gives colour, dashes and label.
        x: Shape ``(k,)``.
        values: Shape ``(seeds, k)``.
    """
    color, dashes = STYLES[condition.key]
    axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
    axes.plot(
        x,
        values.mean(0),
        color=color,
        linestyle=dashes,
        marker="o" if len(x) == 1 else None,
        label=condition.title,
    )


def over_epochs(
    axes: Any, outcomes: Iterable[Outcome], metric: str, label: str, *, percent: bool = True
) -> None:
    """Curves over the training, one for each outcome that has any number.

    Args:
        axes: Where they are drawn.
        outcomes: What is drawn.
        metric: Name of the curve.
        label: What the vertical axis says.
        percent: Whether numbers are shares, to be shown in percent.
    """
    for outcome in outcomes:
        values = outcome.curves[metric] * (100 if percent else 1)
        if not np.isnan(values).all():
            band(axes, outcome.condition, outcome.curves["epoch"][0], values)
    axes.set_xlabel("epochs of training")
    axes.set_ylabel(label)
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(0, 102 if percent else 1)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Any]:
    """An empty matplotlib figure of that size in inches, in the style of all our figures."""
    require("matplotlib")
    # Not pyplot: it would pick a window system and keep state of the user's process.
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(STYLE):  # type: ignore[arg-type]
        yield Canvas(figsize=(width, height), layout="constrained")


def save(page: Any, path: Path, description: str | None = None) -> None:
    """Write a figure as PNG or SVG; equal figures give equal files.

    Args:
        page: What :func:`canvas` gave.
        path: The file; its ending says which format.
        description: Kept in the metadata of an SVG.
    """
    metadata: dict[str, str | None] = (
        {"Software": None} if path.suffix == ".png" else {"Date": None}
    )
    if description is not None:
        metadata["Description"] = description
    with replace_atomically(path) as temporary:
        page.savefig(temporary, format=path.suffix[1:], metadata=metadata)
