"""memtools beside other tools in a few lines, from results that other reports show in full."""

import csv
import json
from collections.abc import Callable

import numpy as np

from bench import critical_report, gradient_norms_report, mislabels, sensitivity_report
from bench.critical_report import AUTO, TOOLS
from bench.gradient_norms_report import OURS, number, table
from bench.problems import MAIN

PARAMETERS = OURS[0]


def exactness() -> list[str]:
    """On how many models each tool gives the norms, and gives them right."""
    problems = gradient_norms_report.results()
    right = {
        tool: sum(tools[tool]["status"] == "ok" for tools in problems.values())
        for tool in (PARAMETERS, "opacus hooks", "opacus ghost", "backpack", "captum")
    }
    ours = right.pop(PARAMETERS)
    others = ", ".join(f"{tool} {count}" for tool, count in right.items())
    return [
        f"norm of every example's gradient: right on, of {len(problems)} models",
        f"**{ours}**",
        others,
    ]


def price() -> list[str]:
    """What the norms cost, and what the fastest other that is right costs."""
    ours, others = [], []
    for name in MAIN:
        tools = gradient_norms_report.results()[name]
        right = gradient_norms_report.comparable(tools)
        ours.append(float(tools[PARAMETERS]["ratio"]))
        others.append(min(float(row["ratio"]) for row in right if row["tool"] not in OURS))
    return [
        "their price, in plain backward passes",
        _spread(ours),
        f"{_spread(others)}: for each model the fastest that is right",
    ]


def searches() -> list[str]:
    """What a box search finds of all that is known to be critical, by how many passes."""
    images = json.loads(critical_report.SETTINGS.read_text())["images"]
    of = list(critical_report.cells(critical_report.ROWS).values())
    known = sum(int(rows[AUTO]["union"]) for rows in of)

    def words(method: str) -> str:
        rows = [cell[method] for cell in of]
        passes = np.mean([int(row["forwards"]) + int(row["backwards"]) for row in rows]) / images
        return f"{sum(int(row['of_union']) for row in rows) / known:.1%} by {passes:.0f}"

    best = max(TOOLS, key=lambda tool: sum(int(cell[tool]["of_union"]) for cell in of))
    return [
        "critical samples: found of those known, by passes for each example",
        f"**{words(AUTO)}**",
        f"{words(best)} ({best})",
    ]


def through_training() -> list[str]:
    """Loss sensitivity at all evaluation times, on one thread."""
    with sensitivity_report.COSTS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["threads"] == "1"]
    times = max(int(row["times"]) for row in rows)
    seconds = {row["tool"]: float(row["seconds"]) for row in rows if int(row["times"]) == times}
    return [
        f"loss sensitivity through {times} updates, after each of them",
        f"**{seconds['memtools']:.1f} s**",
        f"{seconds['unrolled loop']:.0f} s (autograd through the whole training)",
    ]


def wrong_labels() -> list[str]:
    """How well wrong labels are found on the larger data set."""
    run = json.loads((mislabels.RESULTS / "fashion-mnist.json").read_text())
    areas = {name: float(np.mean(found["auroc"])) for name, found in run["scores"].items()}
    theirs = areas["confident_learning"]
    return [
        "wrong labels found (AUROC)",
        f"**{areas['csl']:.3f}** by the history of one training",
        f"{theirs:.3f} (cleanlab, {run['settings']['folds']} trainings)",
    ]


ROWS: tuple[Callable[[], list[str]], ...] = (
    exactness,
    price,
    searches,
    through_training,
    wrong_labels,
)


def _spread(values: list[float]) -> str:
    middle, low, high = (number(str(v)) for v in (np.median(values), min(values), max(values)))
    return f"**{middle}** ({low} to {high})"


def part() -> str:
    """For the first screen of the main README."""
    return table(["", "memtools", "others"], [row() for row in ROWS])
