"""What the sensitivity study came to: tables, verdicts, and sentences."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from memtools.studies import summary
from memtools.studies.cells import Cell
from memtools.studies.claims import (
    Verdict,
    class_claims,
    diagonal_contrast,
    gini_claims,
    off_diagonal,
)
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL, Condition
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder, read_parquet
from memtools.studies.sensitivity.config import SCORE, Config
from memtools.studies.sensitivity.experiment import CONDITIONS, files_of
from memtools.studies.summary import Curves, Summary, Table, curves_of, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["Outcome", "Outcomes", "summarise"]


@dataclass(frozen=True)
class Outcome(summary.Outcome):
    """All seeds of one condition in one task.

    Attributes:
        task: ``"classes"`` or ``"own-class"``.
        sensitivity: Of each example, mean over the evaluation times, shape ``(seeds, n)``.
        matrices: Per-class sensitivity, shape ``(seeds, C, C)``; ``None`` for the other task.
    """

    task: str
    sensitivity: Curves
    matrices: Curves | None

    def largest_share(self) -> Curves:
        """Share of the evaluation time with most sensitivity in the sum, one per seed."""
        means = self.curves["mean_sensitivity"]
        total = means.sum(1)
        return np.divide(means.max(1), total, out=np.ones_like(total), where=total > 0)


Outcomes = Mapping[str, Mapping[str, Outcome]]
"""By task and key of the condition."""


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the sensitivity study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :data:`Outcomes`.
    """
    rows = folder.rows()
    outcomes = {
        task: {c.key: _outcome(folder, rows, config, task, c) for c in conditions}
        for task, conditions in CONDITIONS.items()
    }
    verdicts = list(_verdicts(outcomes))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    title = f"{config.dataset}: {len(data.train):,} training examples"
    columns = ("trained on", "training accuracy", "Gini", "sensitivity", "off / on diagonal")
    numbers = Table(title, columns, [_row(o) for of in outcomes.values() for o in of.values()])
    return Summary(outcomes, [numbers, verdict_table(verdicts)], list(_sentences(outcomes, config)))


def _outcome(
    folder: RunFolder, rows: list[dict], config: Config, task: str, condition: Condition
) -> Outcome:
    cells = [Cell(condition, seed, task) for seed in config.seeds]
    files = [files_of(folder, cell) for cell in cells]
    sensitivity = [read_parquet(file.examples)[SCORE] for file in files]
    matrices = [np.loadtxt(f.matrices, delimiter=",", ndmin=2) for f in files if f.matrices]
    return Outcome(
        condition,
        curves_of(rows, cells),
        task,
        np.array(sensitivity),
        np.stack(matrices) if matrices else None,
    )


def _verdicts(outcomes: Outcomes) -> Iterator[Verdict]:
    yield from gini_claims(
        {
            task: {key: outcome.final("gini_of_running_mean") for key, outcome in of_task.items()}
            for task, of_task in outcomes.items()
        }
    )
    yield from class_claims(
        {
            key: outcome.matrices
            for key, outcome in outcomes["classes"].items()
            if outcome.matrices is not None
        }
    )


def _row(outcome: Outcome) -> list[str]:
    shares = [] if outcome.matrices is None else [off_diagonal(m) for m in outcome.matrices]
    return [
        f"{outcome.task}, {outcome.condition.title}",
        percent(outcome.final("train_accuracy")),
        f"{outcome.final('gini_of_running_mean').mean():.3f}",
        f"{outcome.curves['mean_sensitivity'].mean():.2g}",
        f"{np.mean(shares):.2f}" if shares else "",
    ]


def _sentences(outcomes: Outcomes, config: Config) -> Iterator[str]:
    classes, own = outcomes["classes"], outcomes["own-class"]
    real, labels, inputs = (classes[c.key] for c in (REAL, RANDOM_LABELS, RANDOM_INPUTS))
    own_real, own_inputs = own[REAL.key], own[RANDOM_INPUTS.key]

    def right(outcome: Outcome) -> str:
        return percent(outcome.final("train_accuracy"))

    yield (
        f"Fitting: after {config.epochs} epochs the network has {right(real)} of the training "
        f"examples right with real labels, {right(labels)} with random labels and {right(inputs)} "
        f"with random inputs. Where every example is its own class, it has {right(own_real)} right "
        f"with real inputs and {right(own_inputs)} with random ones."
    )

    def unequal(outcome: Outcome) -> str:
        return f"{outcome.final('gini_of_running_mean').mean():.2f}"

    yield (
        f"Sensitivity: the Gini coefficient, over the examples, of the mean sensitivity is "
        f"{unequal(real)} with real labels, {unequal(labels)} with random labels and "
        f"{unequal(inputs)} with random inputs; where every example is its own class, "
        f"{unequal(own_real)} with real inputs and {unequal(own_inputs)} with random ones. High "
        f"means that a few examples hold most of it."
    )

    def factor(outcome: Outcome) -> str:
        assert outcome.matrices is not None
        contrast = np.mean([diagonal_contrast(matrix) for matrix in outcome.matrices])
        return f"{np.exp(contrast):.2g} times" if np.isfinite(contrast) else "(not defined)"

    yield (
        f"Classes: the loss of a class depends on an example of that class {factor(real)} as much "
        f"as on one of another class with real labels, {factor(labels)} with random labels and "
        f"{factor(inputs)} with random inputs (geometric means)."
    )

    uneven = [
        f"{task}, {outcome.condition.title} ({percent([outcome.largest_share().max()])})"
        for task, of_task in outcomes.items()
        for outcome in of_task.values()
        if len(config.evaluated()) > 2 and outcome.largest_share().max() > 0.5
    ]
    if uneven:
        yield (
            f"Caution: one of the {len(config.evaluated())} evaluation times holds more than half "
            f"of a mean sensitivity in {'; '.join(uneven)}. The derivative through the training "
            f"grew so much there that the mean is about that moment; a lower learning rate helps."
        )
