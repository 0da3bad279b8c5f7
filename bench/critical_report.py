"""Tables and verdicts of what ``python -m bench.critical`` has kept."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.gradient_norms_report import Record, number, table

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "critical.csv"
SETTINGS = RESULTS / "critical.json"
HELD_OUT = RESULTS / "critical_held_out.csv"
HELD_OUT_SETTINGS = RESULTS / "critical_held_out.json"
AUTO, CHEAP, LASS, LOOP, FROZEN = "auto", "auto, effort 0.2", "lass", "loop", "frozen loop"
TOOLS = ("foolbox", "torchattacks", "ART")
METHODS = (AUTO, CHEAP, LASS, LOOP, FROZEN, *TOOLS)

Cells = dict[str, dict[str, Record]]
"""Records by cell and method."""


class Verdict(NamedTuple):
    """A target, whether it is met, and what was measured."""

    target: str
    holds: bool
    measured: str


def cells(path: Path) -> Cells:
    found: Cells = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(f"{row['model']}, {row['radius']}", {})[row["method"]] = row
    return found


def _values(of: Cells, method: str, value: Callable[[Record], float]) -> dict[str, float]:
    """A number for each cell in which the method went through."""
    return {
        cell: value(rows[method])
        for cell, rows in of.items()
        if method in rows and rows[method]["status"] == "ok"
    }


def _share(row: Record) -> float:
    return int(row["of_union"]) / int(row["union"]) if int(row["union"]) else 1.0


def _passes(row: Record) -> int:
    return int(row["forwards"]) + int(row["backwards"])


def _bounded(
    target: str,
    of: Cells,
    values: dict[str, float],
    show: Callable[[float], str],
    *,
    least: float | None = None,
    most: float | None = None,
) -> Verdict:
    """A bound that has to be kept in each cell; the worst of them is named."""
    if len(values) < len(of):
        return Verdict(target, False, f"measured in {len(values)} of {len(of)} cells")
    worst = (min if most is None else max)(values, key=lambda cell: values[cell])
    value = values[worst]
    holds = (least is None or value >= least) and (most is None or value <= most)
    return Verdict(target, holds, f"{show(value)} ({worst})")


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _searches(of: Cells, images: int, where: str) -> Iterable[Verdict]:
    """What is wanted of our own search by itself."""
    for method, share, passes in ((AUTO, 0.99, 100), (CHEAP, 0.95, 20)):
        name = f"`{method}`{where}"
        found = _values(of, method, _share)
        target = f"{name}: at least {_percent(share)} of the union in each cell"
        yield _bounded(target, of, found, _percent, least=share)
        taken = _values(of, method, lambda row: _passes(row) / images)
        target = f"{name}: at most {passes} passes an example in each cell"
        yield _bounded(target, of, taken, number_of, most=passes)


def number_of(value: float) -> str:
    return number(str(value))


def _more_than_tools(of: Cells) -> Verdict:
    target = (
        f"`{AUTO}`: at least as many as {', '.join(TOOLS)} each, and more where they miss any of "
        "the union"
    )
    compared, failed = 0, []
    for cell, rows in of.items():
        for tool in TOOLS:
            ours, theirs = rows[AUTO], rows.get(tool, {"status": "absent"})
            if ours["status"] != "ok" or theirs["status"] != "ok":
                continue
            compared += 1
            misses = int(theirs["of_union"]) < int(theirs["union"])
            if int(ours["found"]) < int(theirs["found"]) + misses:
                failed.append(f"{tool} on {cell}: {ours['found']} and {theirs['found']}")
    measured = "; ".join(failed) or f"in {compared} comparisons of {len(of) * len(TOOLS)}"
    return Verdict(target, compared == len(of) * len(TOOLS) and not failed, measured)


def _fastest(rows: dict[str, Record]) -> Record:
    there = [rows[tool] for tool in TOOLS if tool in rows and rows[tool]["status"] == "ok"]
    return min(there, key=lambda row: float(row["ratio"]))


def _beside_others(of: Cells, images: int) -> Iterable[Verdict]:
    yield _more_than_tools(of)
    times = {
        cell: float(rows[AUTO]["ratio"]) / float(_fastest(rows)["ratio"])
        for cell, rows in of.items()
        if rows[AUTO]["status"] == "ok"
    }
    target = f"`{AUTO}`: at most a third of the time of the fastest of them in each cell"
    yield _bounded(target, of, times, number_of, most=1 / 3)
    missed = sum(int(rows[LOOP]["beyond_lass"]) for rows in of.values())
    found = sum(int(rows[LOOP]["found"]) for rows in of.values())
    yield Verdict(
        f"`{LASS}` finds what the loop finds with the same noise, but for rounding in 0.1%",
        missed <= found / 1000,
        f"{missed} of {found:,} missed",
    )
    faster, frozen = (
        median(float(rows[method]["ratio"]) for rows in of.values()) for method in (LOOP, FROZEN)
    )
    target = f"`{LASS}` is at least 12 times as fast as the loop of public code in the median cell"
    measured = f"{number_of(faster)} times; {number_of(frozen)} with frozen weights"
    yield Verdict(target, faster >= 12, measured)


def verdicts() -> list[Verdict]:
    images = json.loads(SETTINGS.read_text())["images"]
    of, held_out = cells(ROWS), cells(HELD_OUT)
    found = [*_searches(of, images, ""), *_beside_others(of, images)]
    images = json.loads(HELD_OUT_SETTINGS.read_text())["images"]
    return [*found, *_searches(held_out, images, ", on models that nothing was tuned on")]


def verdict_table() -> str:
    rows = [[v.target, "holds" if v.holds else "**missed**", v.measured] for v in verdicts()]
    return table(["target", "verdict", "measured, in the worst cell"], rows)


def _cell(row: Record | None, value: Callable[[Record], str]) -> str:
    if row is None or row["status"] == "absent":
        return "n/a"
    if row["status"] == "refuses":
        return f"refuses: {row['message'].split(':')[0]}"
    return value(row) + (", wrong" if row["status"] == "wrong" else "")


def _found(row: Record) -> str:
    beyond = int(row["found"]) - int(row["of_union"])
    text = f"{row['of_union']} + {beyond}" if beyond else row["of_union"]
    return f"**{text}**" if row["of_union"] == row["union"] else text


def _thousands(row: Record) -> str:
    return number_of(_passes(row) / 1000)


def _time(row: Record) -> str:
    if row["method"] == LASS:
        return "1"
    return f"{number(row['ratio'])} ({number(row['ratio_p20'])} to {number(row['ratio_p80'])})"


def _by_method(of: Cells, value: Callable[[Record], str], *more: str) -> str:
    """A row for each cell, a column for each method that is there."""
    methods = [m for m in METHODS if any(m in rows for rows in of.values())]
    lines = []
    for cell, rows in of.items():
        first = next(iter(rows.values()))
        lines.append([cell, *(first[m] for m in more)])
        lines[-1] += [_cell(rows.get(method), value) for method in methods]
    return table(["model, radius in 255ths", *more, *methods], lines)


def _where(settings: dict[str, Any]) -> str:
    quick = "**A quick run: these numbers mean little.** " if settings["quick"] else ""
    peers = ", ".join(f"{name} {version}" for name, version in settings["peers"].items())
    return (
        f"{quick}torch {settings['torch']}, {settings['threads']} thread of "
        f"{settings['processor']}, commit {settings['commit'][:7]}; {peers}."
    )


def compact() -> str:
    """For the main README."""
    settings = json.loads(SETTINGS.read_text())
    lines = []
    for cell, rows in cells(ROWS).items():
        best = max((rows[t] for t in TOOLS if rows[t]["status"] == "ok"), key=_share)
        fastest = _fastest(rows)
        ours = [_cell(rows[m], _found) for m in (AUTO, LASS)]
        ours.insert(1, _cell(rows[AUTO], _thousands))
        ratio = float(fastest["ratio"]) / float(rows[AUTO]["ratio"] or "nan")
        tools = [f"{_found(best)} ({best['method']})", _thousands(best)]
        lines.append(
            [cell, best["union"], *ours, *tools, f"{number_of(ratio)} ({fastest['method']})"]
        )
    head = [
        "model, radius in 255ths",
        "critical",
        AUTO,
        "thousand passes",
        f"{LASS}, 50 steps",
        "best tool",
        "thousand passes",
    ]
    missed = [v.target for v in verdicts() if not v.holds]
    targets = f"Missed: {'; '.join(missed)}." if missed else "Every target that was set holds."
    return "\n\n".join(
        [
            table([*head, "time of the fastest tool / auto"], lines),
            f"{targets} {_where(settings)}",
        ]
    )


def page() -> str:
    """For ``bench/README.md``."""
    settings = json.loads(SETTINGS.read_text())
    held_out = json.loads(HELD_OUT_SETTINGS.read_text())
    of, of_held_out = cells(ROWS), cells(HELD_OUT)
    accuracies = "; ".join(
        f"{name} {_percent(a['train accuracy'])} and {_percent(a['test accuracy'])}"
        for name, a in (settings["models"] | held_out["models"]).items()
    )
    return "\n\n".join(
        [
            verdict_table(),
            f"Critical among {settings['images']:,} test images of Fashion-MNIST, by model and "
            "radius in 255ths; bold: all of the union. After a plus sign: what is found beyond "
            "it. Every flip is checked in a plain forward pass.",
            _by_method(of, _found, "union"),
            f"The union: {settings['reference']}. The tools take {settings['steps']} steps of an "
            f"{settings['steps_across']}th of the radius, LASS {settings['steps']} steps.",
            "Passes of single examples in thousands, forward and backward, counted by hooks on "
            "the model:",
            _by_method(of, _thousands),
            f"Time over that of `{LASS}` in the same round, median over the rounds, 20th and "
            f"80th percentile in brackets. The loop goes through one image after the other and "
            f"calls `loss.backward()`, as public code does; the other one spares itself the "
            f"gradients of the weights. They are timed on {settings['timed_in_loop']} images at "
            "random and scaled by the passes that all of them take:",
            _by_method(of, _time),
            "Models and radii that nothing was tuned on; found, then passes in thousands:",
            _by_method(of_held_out, _found, "union"),
            _by_method(of_held_out, _thousands),
            f"Accuracy in training and on test images: {accuracies}. {_where(settings)}",
        ]
    )
