"""What the study of forgetting came to: tables, verdicts, and sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memtools.studies.cells import Cell
from memtools.studies.claims import Values, Verdict, judge
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.forgetting.config import Config
from memtools.studies.forgetting.experiment import task_name
from memtools.studies.forgetting.kept import kept_at
from memtools.studies.forgetting.tasks import PHASES
from memtools.studies.summary import Curves, Summary, Table, curves_of, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["Outcome", "summarise", "title_of"]

LEARNT = 0.8
"""Accuracy, as a share of that on task A, below which task B is not said to be learnt."""


@dataclass(frozen=True)
class Outcome:
    """All seeds of one probability of dropout.

    Attributes:
        dropout: The probability.
        a: Held-out accuracy on task A after each epoch of task A and then of B, shape
            ``(seeds, 2 * epochs)``.
        b: The same on task B.
        goals: Accuracy on task B at which what is kept of A is compared, one per seed.
    """

    dropout: float
    a: Curves
    b: Curves
    goals: Values

    @property
    def epochs(self) -> int:
        """Epochs of each task."""
        return self.a.shape[1] // 2

    def during_b(self) -> tuple[Curves, Curves]:
        """Accuracies on A and on B before task B and after each epoch of it."""
        first = self.epochs - 1
        return self.a[:, first:], self.b[:, first:]

    def kept(self) -> Values:
        """Accuracy on A at the goal, one per seed; NaN where it is not reached."""
        pairs = zip(*self.during_b(), self.goals, strict=True)
        return np.array([kept_at(a, b, goal) for a, b, goal in pairs])


def title_of(dropout: float) -> str:
    """How networks are called."""
    return f"dropout {dropout:g}" if dropout else "no dropout"


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are a list of :class:`Outcome`, that without dropout first.
    """
    outcomes = _outcomes(folder.rows(), config)
    verdicts = list(_verdicts(outcomes, config))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    columns = ("network", "A, before B", "A, at equal B", "that B", "A, after B", "B, after B")
    rows = [_row(outcome) for outcome in outcomes]
    title = f"{config.dataset}: {len(data.train):,} training examples, held-out accuracy"
    tables = [Table(title, columns, rows), verdict_table(verdicts)]
    return Summary(outcomes, tables, list(_sentences(outcomes, config)))


def _outcomes(rows: Sequence[dict[str, Any]], config: Config) -> list[Outcome]:
    found: list[Outcome] = []
    for dropout in config.probabilities():
        cells = [Cell(None, seed, task_name(dropout)) for seed in config.seeds]
        curves = [
            curves_of([_numbers(row) for row in rows if row["phase"] == phase], cells)
            for phase in PHASES
        ]
        a, b = (
            np.concatenate([of_phase[name] for of_phase in curves], axis=1)
            for name in ("accuracy_a", "accuracy_b")
        )
        goals = found[0].goals if found else config.goal * b[:, -1]
        found.append(Outcome(dropout, a, b, goals))
    return found


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "phase"}


def _verdicts(outcomes: Sequence[Outcome], config: Config) -> Iterator[Verdict]:
    """C10: with dropout more of A is kept, and as much of B learnt."""
    plain, *others = outcomes
    for statement, effect in (
        (
            f"more of task A is kept when task B is learnt to {config.goal:.3g} of what it is "
            "without dropout in the end (difference of held-out accuracy on A)",
            lambda o: o.kept() - plain.kept(),
        ),
        (
            "more of task A is kept after task B (difference of held-out accuracy on A)",
            lambda o: o.a[:, -1] - plain.a[:, -1],
        ),
        (
            "task B is learnt no worse (difference of held-out accuracy on B in the end, plus a "
            f"margin of {config.margin:.3g})",
            lambda o: o.b[:, -1] - plain.b[:, -1] + config.margin,
        ),
    ):
        for outcome in others:
            yield judge("C10", statement, effect(outcome), about=title_of(outcome.dropout))


def _row(outcome: Outcome) -> list[str]:
    kept = outcome.kept()
    return [
        title_of(outcome.dropout),
        percent(outcome.during_b()[0][:, 0]),
        "not reached" if np.isnan(kept).any() else percent(kept),
        percent(outcome.goals),
        percent(outcome.a[:, -1]),
        percent(outcome.b[:, -1]),
    ]


def _sentences(outcomes: Sequence[Outcome], config: Config) -> Iterator[str]:
    plain = outcomes[0]

    def each(values: Any) -> str:
        return ", ".join(f"{percent(values(o))} with {title_of(o.dropout)}" for o in outcomes)

    yield (
        f"Task A: after {config.epochs} epochs of task A, this share of its held-out examples is "
        f"right: {each(lambda o: o.during_b()[0][:, 0])}."
    )
    yield (
        f"Then task B: after {config.epochs} epochs of task B, {each(lambda o: o.b[:, -1])} of its "
        f"held-out examples are right, and of those of task A still "
        f"{each(lambda o: o.a[:, -1])}."
    )
    reached = [o for o in outcomes if not np.isnan(o.kept()).any()]
    compared = ", ".join(f"{percent(o.kept())} with {title_of(o.dropout)}" for o in reached)
    if reached:
        yield (
            f"At equal accuracy on B: when {percent(plain.goals)} of task B are right for the "
            f"first time, these are still right of task A: {compared}."
        )
    for outcome in outcomes:
        missed = int(np.isnan(outcome.kept()).sum())
        if missed:
            yield (
                f"Caution: with {title_of(outcome.dropout)}, {missed} of {len(outcome.goals)} "
                f"networks never learn that much of task B; there is no verdict at equal accuracy, "
                f"and more --epochs help."
            )
    low = [o for o in outcomes if o.b[:, -1].mean() < LEARNT * plain.during_b()[0][:, 0].mean()]
    if low:
        yield (
            f"Caution on learning: task B is learnt far less than task A was with "
            f"{', '.join(title_of(o.dropout) for o in low)}; who has not learnt B has little "
            f"reason to forget A."
        )
