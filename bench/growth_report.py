"""Table and figure of what ``python -m bench.growth`` has kept."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from bench.gradient_norms_report import Record, number, table
from memtools.report.drawing import canvas, save

RESULTS = Path(__file__).parent / "results"
POINTS = RESULTS / "growth.csv"
SETTINGS = RESULTS / "growth.json"
FIGURE = RESULTS / "growth.svg"
NORMS = ("batch", "width", "depth", "sequence")
"""Axes of one operation, which are drawn with their memory."""
LOOKS = {
    "memtools": ("#0072B2", "o"),
    "memtools, lass": ("#56B4E9", "o"),
    "plain pass": ("black", "s"),
    "eager": ("black", "^"),
    "naive loop": ("#999999", "v"),
    "vmap": ("#E69F00", "D"),
    "numpy": ("#009E73", "P"),
    "opacus hooks": ("#D55E00", "X"),
    "opacus ghost": ("#CC79A7", "<"),
    "backpack": ("#009E73", ">"),
    "captum": ("#4B2E83", "*"),
    "foolbox": ("#E69F00", "P"),
    "torchattacks": ("#D55E00", "*"),
    "ART": ("#CC79A7", "h"),
}
WHATS = {"seconds": ("time (ms)", 1000), "memory_mib": ("peak memory (MiB)", 1)}


def digest() -> str:
    """What ties the figure to the results that it shows."""
    return hashlib.sha256(POINTS.read_bytes() + SETTINGS.read_bytes()).hexdigest()


def results() -> dict[str, dict[str, list[Record]]]:
    """Records by axis and implementation, in the order of their sizes."""
    found: dict[str, dict[str, list[Record]]] = {}
    with POINTS.open() as file:
        for row in csv.DictReader(file):
            of_axis = found.setdefault(row["axis"], {})
            of_axis.setdefault(row["implementation"], []).append(row)
    return found


def ends(settings: dict[str, Any]) -> str:
    """Where each implementation stops, and why."""
    lines = []
    for axis, ways in results().items():
        furthest = max(_last(rows) for rows in ways.values())
        for i, (way, rows) in enumerate(ways.items()):
            last, end = _last(rows), rows[-1]
            size = f"**{last:,}**" if last == furthest else f"{last:,}" if last else "none"
            why = f"{end['status']}, at {int(end['size']):,}"
            if end["status"] == "refuses":
                why = f"{why}: `{end['message'].replace('`', '')}`"
            slopes = settings["exponents"].get(axis, {}).get(way, {})
            lines.append(
                [
                    "" if i else f"{axis}: {settings['axes'][axis]}",
                    way,
                    size,
                    "goes on" if end["status"] == "ok" else why,
                    *(f"{slopes[what]:.2f}" if what in slopes else "n/a" for what in WHATS),
                ]
            )
    head = ["size that grows", "implementation", "largest that ran", "ended by"]
    return table([*head, "exponent of time", "of memory"], lines)


def _last(rows: list[Record]) -> int:
    return max((int(row["size"]) for row in rows if row["status"] == "ok"), default=0)


def page() -> str:
    """For ``bench/README.md``."""
    settings = json.loads(SETTINGS.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in settings["peers"].items())
    quick = "**A quick run of two sizes: these numbers mean little.** " if settings["quick"] else ""
    return "\n\n".join(
        [
            f"![Time and memory of every implementation against sizes](results/{FIGURE.name})",
            ends(settings),
            f"Sizes grow by factors of 4. Patience ends at {settings['patience_seconds']} seconds "
            "of CPU time for a call, memory at "
            f"{number(str(settings['memory_gib']))} GiB of data of the whole process. Bold: the "
            "largest size of all. Exponents: slopes in double logarithmic scales over the larger "
            f"half of the sizes that ran. {quick}{settings['threads']} thread of "
            f"{settings['processor']}, torch {settings['torch']}, commit "
            f"{settings['commit'][:7]}; {versions}.",
        ]
    )


def draw() -> None:
    found = results()
    others = [axis for axis in found if axis not in NORMS]
    rows = [(NORMS, "seconds"), (NORMS, "memory_mib"), (others, "seconds")]
    with canvas(13, 9.5) as sheet:
        grid = sheet.subplots(len(rows), len(NORMS))
        labels: dict[str, Any] = {}
        for line, (axes_shown, what) in zip(grid, rows, strict=True):
            for plot, axis in zip(line, axes_shown, strict=True):
                labels |= _plot(plot, found[axis], what)
                plot.set_title(axis)
            line[0].set_ylabel(WHATS[what][0])
        sheet.legend(labels.values(), labels, loc="outside lower center", ncols=7)
        save(sheet, FIGURE, description=digest())


def _plot(plot: Any, ways: dict[str, list[Record]], what: str) -> dict[str, Any]:
    """The curves of an axis; what the legend needs of them."""
    drawn = {}
    for way, rows in ways.items():
        color, marker = LOOKS[way]
        ran = [row for row in rows if row["status"] == "ok"]
        (drawn[way],) = plot.loglog(
            [int(row["size"]) for row in ran],
            [WHATS[what][1] * float(row[what] or "nan") for row in ran],
            color=color,
            marker=marker,
            markersize=4,
            linewidth=2.2 if way == "memtools" else 1.2,
        )
    return drawn
