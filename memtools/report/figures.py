"""The figures of the memorization study: one panel each, legible alone, on a phone and on paper."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memtools.extras import require
from memtools.files import replace_atomically
from memtools.inequality import lorenz_curve
from memtools.studies.memorization.summary import Outcome

__all__ = ["FIGURES", "Figure", "canvas", "draw_figures", "save"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; the dashes
# carry the same information without colour.
STYLES = {
    "real": ("#0072B2", "solid"),
    "random-labels-20": ("#E69F00", (0, (6, 1.5))),
    "random-labels-40": ("#D55E00", (0, (4, 1.5, 1, 1.5))),
    "random-labels-100": ("#CC79A7", (0, (2, 1))),
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
        draw: Draws it into axes.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any, dict[str, Outcome]], None]


def _curve(
    metric: str, label: str, *, percent: bool = True
) -> Callable[[Any, dict[str, Outcome]], None]:
    def draw(axes: Any, outcomes: dict[str, Outcome]) -> None:
        for key, outcome in outcomes.items():
            values = outcome.curves[metric] * (100 if percent else 1)
            if np.isnan(values).all():
                continue
            color, dashes = STYLES[key]
            epochs = outcome.curves["epoch"][0]
            axes.fill_between(
                epochs, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0
            )
            axes.plot(
                epochs,
                values.mean(0),
                color=color,
                linestyle=dashes,
                marker="o" if len(epochs) == 1 else None,
                label=outcome.condition.title,
            )
        axes.set_xlabel("epochs of training")
        axes.set_ylabel(label)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 102 if percent else 1)

    return draw


def _lorenz(axes: Any, outcomes: dict[str, Outcome]) -> None:
    axes.plot([0, 100], [0, 100], color="#777777", linewidth=1, label="all examples equal")
    for key, outcome in outcomes.items():
        color, dashes = STYLES[key]
        curves = 100 * lorenz_curve(outcome.norms).numpy()
        share = np.linspace(0, 100, curves.shape[1])
        axes.fill_between(share, curves.min(0), curves.max(0), color=color, alpha=0.18, linewidth=0)
        axes.plot(
            share, curves.mean(0), color=color, linestyle=dashes, label=outcome.condition.title
        )
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


def draw_figures(outcomes: dict[str, Outcome], folder: Path) -> None:
    """Write every figure as PNG and SVG.

    Args:
        outcomes: What the finished study came to, by condition.
        folder: Where the files go.
    """
    folder.mkdir(exist_ok=True)
    for figure in FIGURES:
        with canvas(4.8, 4.1) as page:
            axes = page.subplots()
            figure.draw(axes, outcomes)
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.44, -0.17), ncols=2, columnspacing=1.5
            )
            for ending in (".png", ".svg"):
                save(page, folder / f"{figure.name}{ending}")


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
