"""What the study of wrong labels came to: a table, verdicts, and sentences."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memtools.studies.claims import judge
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder, read_parquet
from memtools.studies.mislabels.config import Config
from memtools.studies.mislabels.experiment import cells
from memtools.studies.mislabels.methods import METHODS, auroc, precision
from memtools.studies.summary import Curves, Summary, Table, curves_of, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["Outcomes", "summarise"]


@dataclass(frozen=True)
class Outcomes:
    """All seeds of the study.

    Attributes:
        curves: Every number of the lines by name, shape ``(seeds, epochs)``.
        areas: Area under the ROC curve after the last epoch, one per seed, by method.
        precisions: Share of wrong labels among the most suspect, one per seed, by method.
        wrong: Share of labels that are wrong, one per seed.
    """

    curves: dict[str, Curves]
    areas: dict[str, Curves]
    precisions: dict[str, Curves]
    wrong: Curves


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :class:`Outcomes`.
    """
    trained = cells(config)
    tables = [read_parquet(folder.path / "examples" / f"{cell.name}.parquet") for cell in trained]
    wrong = [np.not_equal(table["label"], table["clean_label"]) for table in tables]
    methods = [m for m in METHODS if all(METHODS[m].column in table for table in tables)]
    pairs = list(zip(tables, wrong, strict=True))
    outcomes = Outcomes(
        curves_of(folder.rows(), trained),
        {m: np.array([auroc(table, m, is_wrong) for table, is_wrong in pairs]) for m in methods},
        {
            m: np.array([precision(table, m, is_wrong) for table, is_wrong in pairs])
            for m in methods
        },
        np.array([is_wrong.mean() for is_wrong in wrong]),
    )
    areas = outcomes.areas
    verdicts = [
        judge(
            "ours",
            "the sum of the losses finds wrong labels better (difference of the areas under the "
            "ROC curve)",
            areas["csl"] - areas[method],
            about=f"than: {METHODS[method].title}",
        )
        for method in methods
        if method != "csl"
    ]
    write_verdicts(folder.path / "verdicts.json", verdicts)
    ranked = sorted(methods, key=lambda method: -areas[method].mean())
    title = f"{config.dataset}: {len(data.train):,} training examples"
    columns = ("score", "AUROC", "lowest to highest seed", "wrong among the most suspect")
    rows = [
        [
            METHODS[method].title,
            f"{areas[method].mean():.3f}",
            f"{areas[method].min():.3f} to {areas[method].max():.3f}",
            percent(outcomes.precisions[method]),
        ]
        for method in ranked
    ]
    numbers = Table(title, columns, rows)
    sentences = list(_sentences(outcomes, config, ranked))
    return Summary(outcomes, [numbers, verdict_table(verdicts)], sentences)


def _sentences(outcomes: Outcomes, config: Config, ranked: list[str]) -> Iterator[str]:
    areas, best = outcomes.areas, ranked[0]
    yield (
        f"Finding: of the scores, {METHODS[best].title} ranks wrong labels highest: a wrong one "
        f"is above a right one in {percent(areas[best])} of all pairs. Of as many examples as have "
        f"a wrong label ({percent(outcomes.wrong)}), the most suspect ones, "
        f"{percent(outcomes.precisions[best])} have one."
    )
    course = outcomes.curves["auroc_last_loss"].mean(0)
    yield (
        f"History: the loss by itself has an area of {course.max():.3f} at its best epoch "
        f"({int(course.argmax()) + 1}) and {course[-1]:.3f} after the last, when wrong labels are "
        f"being learnt by heart ({percent(outcomes.curves['train_accuracy'][:, -1])} of the "
        f"training labels are right); its sum over the epochs has {areas['csl'].mean():.3f}."
    )
    if "confident_learning" in areas:
        yield (
            f"Cross-validation: confident learning has {areas['confident_learning'].mean():.3f}, "
            f"and took {config.folds} more trainings of {config.fold_epochs} epochs; the ledger "
            f"took none."
        )
    else:
        yield (
            "Not compared: confident learning, as cleanlab is not installed "
            "(pip install cleanlab), and the study has to be run anew with it."
        )
