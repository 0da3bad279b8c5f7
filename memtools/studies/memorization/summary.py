"""What the memorization study came to: a table, and sentences that say no more than the numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from memtools.extras import require
from memtools.studies import summary
from memtools.studies.cells import Cell
from memtools.studies.conditions import Condition
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder, read_parquet
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.config import Config
from memtools.studies.memorization.recorder import NORM
from memtools.studies.probes import Sizes
from memtools.studies.summary import Curves, Summary, Table, curves_of, percent

__all__ = ["COLUMNS", "Outcome", "summarise", "summary_of", "table_row"]


@dataclass(frozen=True)
class Outcome(summary.Outcome):
    """All seeds of one condition.

    Attributes:
        norms: Mean input-gradient norm over the epochs, shape ``(seeds, n)``.
        detection: AUROC of finding wrong labels by each score, one value per seed; empty where
            no label is wrong.
    """

    norms: Curves
    detection: dict[str, list[float]]

    def epochs_to_fit(self) -> list[float]:
        """First epoch with 100% training accuracy for each seed; infinite if there was none."""
        return [
            float(np.argmax(seed >= 1) + 1) if (seed >= 1).any() else float("inf")
            for seed in self.curves["train_accuracy"]
        ]


COLUMNS = (
    "trained on",
    "training accuracy",
    "epochs to 100%",
    "held-out best",
    "held-out last",
    "Gini",
    "critical held-out",
    "critical training",
)

DETECTORS = ("csl", NORM)


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder.

    Args:
        folder: The folder of the memorization study.
        config: Its settings.
        data: Its data.

    Returns:
        A :class:`Summary`; its outcomes are an :class:`Outcome` for each condition's key.
    """
    return summary_of(folder, config, Sizes.of(config, data), len(data.train))


def summary_of(folder: RunFolder, config: Config, sizes: Sizes, num_examples: int) -> Summary:
    """The same for given numbers of examples."""
    rows = folder.rows()
    outcomes = {c.key: _outcome(folder, rows, config.seeds, c) for c in CONDITIONS}
    title = f"{config.dataset}: {num_examples:,} training examples"
    table = Table(title, COLUMNS, [table_row(outcome) for outcome in outcomes.values()])
    return Summary(outcomes, [table], list(_sentences(outcomes, config, sizes)))


def _outcome(
    folder: RunFolder, rows: list[dict[str, Any]], seeds: Sequence[int], condition: Condition
) -> Outcome:
    metrics = require("sklearn.metrics")
    cells = [Cell(condition, seed) for seed in seeds]
    norms, detection = [], {score: [] for score in DETECTORS}
    for cell in cells:
        table = read_parquet(folder.path / "examples" / f"{cell.name}.parquet")
        norms.append(np.array(table[NORM]))
        wrong = np.array(table["label"]) != np.array(table["clean_label"])
        if 0 < wrong.sum() < len(wrong):
            for score, values in detection.items():
                values.append(float(metrics.roc_auc_score(wrong, table[score])))
    return Outcome(condition, curves_of(rows, cells), np.stack(norms), detection)


def table_row(outcome: Outcome) -> list[str]:
    """Cells of the table for one condition, under :data:`COLUMNS`."""
    return [
        outcome.condition.title,
        percent(outcome.final("train_accuracy")),
        _epochs(outcome.epochs_to_fit(), outcome.curves["epoch"].shape[1]),
        percent(outcome.curves["validation_accuracy"].max(1)),
        percent(outcome.final("validation_accuracy")),
        f"{mean(outcome.final('gini_of_running_mean')):.2f}",
        percent(outcome.final("csr_validation")),
        percent(outcome.final("csr_train")),
    ]


def _sentences(outcomes: dict[str, Outcome], config: Config, sizes: Sizes) -> Iterator[str]:
    real, labels = outcomes["real"], outcomes["random-labels-100"]
    inputs, part = outcomes["random-inputs-100"], outcomes["random-labels-40"]
    epochs = config.epochs

    yield (
        f"Fitting: after {epochs} epochs the network has {percent(real.final('train_accuracy'))} "
        f"of the training examples right with real labels, "
        f"{percent(labels.final('train_accuracy'))} with random labels and "
        f"{percent(inputs.final('train_accuracy'))} with random inputs."
    )

    gini = "gini_of_running_mean"
    yield (
        f"Sensitivity: its Gini coefficient over the examples is "
        f"{mean(real.final(gini)):.2f} with real labels, {mean(labels.final(gini)):.2f} with "
        f"random labels and {mean(inputs.final(gini)):.2f} with random inputs. It is higher on "
        f"real data than with random labels in {_wins(real, labels, gini)} and than with random "
        f"inputs in {_wins(real, inputs, gini)}. High means that a few examples hold most of it."
    )

    validation = part.curves["validation_accuracy"]
    best, last = validation.max(1), validation[:, -1]
    # The best of many epochs is lucky: only three standard errors of a share of the held-out
    # examples, in every seed, are called a rise or a fall.
    noise = 3 * np.sqrt(best * (1 - best) / sizes.held_out)
    rises, falls = (best - validation[:, 0] > noise).all(), (best - last > noise).all()
    peak = f"{percent(best)} (epoch {median(validation.argmax(1) + 1):.0f})"
    course = {
        (True, True): f"rises to {peak}, then falls to {percent(last)}",
        (True, False): f"rises to {peak} and ends at {percent(last)}",
        (False, True): f"falls from {peak} to {percent(last)}",
        (False, False): f"ends at {percent(last)}, its best being {peak}",
    }[bool(rises), bool(falls)]
    yield (
        f"Memorising: with 40% random labels, validation accuracy {course}, while the share of the "
        f"randomly labelled examples that get the label they were given goes from "
        f"{percent(part.curves['corrupted_accuracy'][:, 0])} to "
        f"{percent(part.final('corrupted_accuracy'))}."
    )

    csr = "csr_validation"
    yield (
        f"Decision boundaries: {config.search_in_words} finds another predicted "
        f"class within ±{config.radius:.3g} per pixel around "
        f"{percent(real.final(csr))} of {sizes.searched} held-out examples after training on real "
        f"labels, {percent(labels.final(csr))} after random labels and "
        f"{percent(inputs.final(csr))} after random inputs. That is more than after real labels "
        f"in {_wins(labels, real, csr)} with random labels and in {_wins(inputs, real, csr)} with "
        f"random inputs."
    )

    found = [
        f"{mean(outcome.detection['csl']):.3f} by cumulative loss and "
        f"{mean(outcome.detection[NORM]):.3f} by mean input-gradient norm with "
        f"{outcome.condition.title}"
        for outcome in (outcomes["random-labels-20"], part)
        if all(outcome.detection.values())
    ]
    if found:
        yield (
            f"Finding wrong labels: ranking the training examples tells wrong labels from right "
            f"ones with an AUROC of {', and '.join(found)} (0.5 is chance, 1 is perfect)."
        )


def _wins(higher: Outcome, lower: Outcome, name: str) -> str:
    """In how many seeds one condition ends above another."""
    wins = higher.final(name) > lower.final(name)
    return f"{wins.sum()} of {len(wins)} seed{'s' if len(wins) > 1 else ''}"


def _epochs(numbers: list[float], allowed: int) -> str:
    """Median over the seeds, those that never got there counting as longer than any."""
    middle = median(numbers)
    return f"{middle:.0f}" if middle < float("inf") else f">{allowed}"
