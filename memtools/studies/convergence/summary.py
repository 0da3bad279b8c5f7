"""What the study of convergence came to: tables, verdicts, and sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from memtools.studies.claims import Verdict
from memtools.studies.conditions import REAL, Condition
from memtools.studies.convergence.config import Config
from memtools.studies.convergence.experiment import CONDITIONS
from memtools.studies.convergence.times import Times, judge_bounds
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Summary, Table
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["Outcome", "Outcomes", "summarise"]


@dataclass(frozen=True)
class Outcome:
    """All seeds of one kind of data.

    Attributes:
        condition: The kind of data.
        by_size: Over the sizes, with the largest width.
        by_width: Over the widths, with the largest size.
    """

    condition: Condition
    by_size: Times
    by_width: Times


Outcomes = dict[str, Outcome]
"""By key of the condition."""


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :data:`Outcomes`.
    """
    rows = folder.rows()
    outcomes = {condition.key: _outcome(condition, rows, config) for condition in CONDITIONS}
    verdicts = list(_verdicts(outcomes, config))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    tables = [_table(outcomes, config, name) for name in ("by_size", "by_width")]
    return Summary(
        outcomes, [*tables, verdict_table(verdicts)], list(_sentences(outcomes, config, rows))
    )


def _outcome(condition: Condition, rows: Sequence[dict[str, Any]], config: Config) -> Outcome:
    found = {
        (row["seed"], row["size"], row["width"]): row
        for row in rows
        if row["trained_on"] == condition.key
    }

    def times(x: Sequence[int], points: Sequence[tuple[int, int]]) -> Times:
        def values(name: str) -> list[list[Any]]:
            return [[found[seed, *point][name] for point in points] for seed in config.seeds]

        return Times(
            np.array(x, np.float64),
            np.array(values("epochs"), np.float64),
            np.array(values("updates"), np.float64),
            np.array(values("is_censored"), np.bool_),
        )

    size, width = config.sizes[-1], config.widths[-1]
    return Outcome(
        condition,
        times(config.sizes, [(n, width) for n in config.sizes]),
        times(config.widths, [(size, w) for w in config.widths]),
    )


def _table(outcomes: Outcomes, config: Config, name: str) -> Table:
    over, values = ("examples", config.sizes) if name == "by_size" else ("width", config.widths)
    fixed = f"width {config.widths[-1]}" if name == "by_size" else f"{config.sizes[-1]:,} examples"
    rows = []
    for outcome in outcomes.values():
        times: Times = getattr(outcome, name)
        epochs = [_epochs(times, place) for place in range(len(values))]
        rows.append([outcome.condition.title, *epochs, times.slopes().shown("+.2f")])
    columns = ("trained on", *(f"{over} {value:,}" for value in values), "slope")
    return Table(f"{config.dataset}, {fixed}: epochs until all are right", columns, rows)


def _epochs(times: Times, place: int) -> str:
    """Geometric mean over the seeds."""
    return times.logs(place).shown(".3g", exp)


def _verdicts(outcomes: Outcomes, config: Config) -> Iterator[Verdict]:
    real = outcomes[REAL.key]
    noises = [outcome for key, outcome in outcomes.items() if key != REAL.key]
    for noise in noises:
        yield judge_bounds(
            "C5",
            "time to fit grows faster with the number of examples than on real data (slope of "
            "log(time) against log(examples), less that of real data)",
            noise.by_size.slopes() - real.by_size.slopes(),
            about=noise.condition.title,
        )
    for noise in noises:
        yield judge_bounds(
            "C5",
            "time to fit falls more with the width than on real data (slope of log(time) against "
            "log(width) of real data, less that with noise)",
            real.by_width.slopes() - noise.by_width.slopes(),
            about=noise.condition.title,
        )
    for noise in noises:
        yield judge_bounds(
            "ours",
            f"takes longer to fit than real data, {config.sizes[-1]:,} examples and width "
            f"{config.widths[-1]} (logarithm of the ratio of times)",
            noise.by_size.logs(-1) - real.by_size.logs(-1),
            about=noise.condition.title,
        )


def _sentences(outcomes: Outcomes, config: Config, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    unfinished = sum(row["is_censored"] for row in rows)
    yield (
        f"Fitting: {len(rows) - unfinished} of {len(rows)} trainings came to have every training "
        f"example right within {config.epochs} epochs"
        + (
            "; the others count as taking longer than that, and means and slopes that depend on "
            "them are bounds (≥, ≤)."
            if unfinished
            else "."
        )
    )

    def course(name: str) -> str:
        return ", ".join(
            f"from {_epochs(times, 0)} to {_epochs(times, -1)} with {outcome.condition.title}"
            for outcome in outcomes.values()
            for times in [getattr(outcome, name)]
        )

    yield (
        f"Size: from {config.sizes[0]:,} to {config.sizes[-1]:,} examples, epochs until all are "
        f"right go {course('by_size')}."
    )
    yield (
        f"Width: from {config.widths[0]:,} to {config.widths[-1]:,} units, they go "
        f"{course('by_width')}."
    )
    real = outcomes[REAL.key].by_size.logs(-1)
    ratios = []
    for key, outcome in outcomes.items():
        if key != REAL.key:
            ratio = (outcome.by_size.logs(-1) - real).shown(".3g", exp)
            ratios.append(f"{ratio} with {outcome.condition.title}")
    yield (
        f"Noise and real data: with {config.sizes[-1]:,} examples and width {config.widths[-1]}, "
        f"epochs are those of real data times {', '.join(ratios)}."
    )
