"""What the study of regularisation came to: tables, verdicts, and sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memtools.studies.claims import Values, Verdict, judge
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.regularization.config import Config
from memtools.studies.regularization.regularizers import ADVERSARIAL, DROPOUT, NONE, REGULARIZERS
from memtools.studies.regularization.tradeoff import Curve, Left, memorization_left
from memtools.studies.summary import Summary, Table, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["FITTED", "Outcomes", "summarise"]

FITTED = 0.95
"""Training accuracy below which a network is not said to have learnt its labels."""


@dataclass(frozen=True)
class Outcomes:
    """All seeds of the study.

    Attributes:
        curves: What each regulariser does by strength, by its key.
        left: What each leaves at the common accuracy, by its key.
        tolerance: Accuracy that may be lost for it.
    """

    curves: dict[str, Curve]
    left: dict[str, Left]
    tolerance: float


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :class:`Outcomes`.
    """
    rows = folder.rows()
    curves = {key: _curve(rows, config, key) for key in REGULARIZERS}
    left = {key: memorization_left(curve, config.tolerance) for key, curve in curves.items()}
    outcomes = Outcomes(curves, left, config.tolerance)
    verdicts = list(_verdicts(outcomes))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    tables = [_compared(outcomes, config, data), verdict_table(verdicts), _strengths(outcomes)]
    return Summary(outcomes, tables, list(_sentences(outcomes, config)))


def _curve(rows: Sequence[Mapping[str, Any]], config: Config, key: str) -> Curve:
    found = {(r["task"], r["seed"], r["strength"], r["labels"]): r for r in rows}
    points = [(NONE, 0.0), *((key, strength) for strength in config.strengths(key))]

    def of(labels: str, name: str) -> Values:
        return np.array(
            [[found[task, seed, s, labels][name] for task, s in points] for seed in config.seeds]
        )

    return Curve(
        np.array([strength for _, strength in points]),
        of("real", "validation_accuracy"),
        of("random", "train_accuracy"),
    )


def _verdicts(outcomes: Outcomes) -> Iterator[Verdict]:
    """C8: dropout leaves less than any other, and less still with adversarial training."""
    left = {key: of_key.random for key, of_key in outcomes.left.items()}
    price = f"at most {_points(outcomes.tolerance)} less accuracy on real data than with none"
    for key, regularizer in REGULARIZERS.items():
        if key not in (DROPOUT, ADVERSARIAL):
            yield judge(
                "C8",
                "more random labels are learnt than with dropout, for "
                f"{price} (difference of training accuracy)",
                left[key] - left[DROPOUT],
                about=f"with {regularizer.title}",
            )
    yield judge(
        "C8",
        "fewer random labels are learnt with dropout and adversarial training than with dropout "
        f"alone, for {price} (difference of training accuracy)",
        left[DROPOUT] - left[ADVERSARIAL],
    )


def _compared(outcomes: Outcomes, config: Config, data: Data) -> Table:
    columns = (
        "regulariser",
        "random labels learnt",
        "lowest to highest seed",
        "accuracy on real data",
        "strength",
    )
    plain = outcomes.curves[DROPOUT]
    rows = [["none", *_spread(plain.random[:, 0]), percent(plain.real[:, 0]), ""]]
    for key in sorted(REGULARIZERS, key=lambda key: outcomes.left[key].random.mean()):
        left = outcomes.left[key]
        strengths = _strengths_in_words(outcomes.curves[key].strengths, left.places)
        rows.append([REGULARIZERS[key].title, *_spread(left.random), percent(left.real), strengths])
    return Table(f"{config.dataset}: {len(data.train):,} training examples", columns, rows)


def _strengths(outcomes: Outcomes) -> Table:
    columns = ("regulariser", "strength", "accuracy on real data", "random labels learnt")
    rows = []
    for key, curve in outcomes.curves.items():
        first = 1 if rows else 0
        for place, strength in list(enumerate(curve.strengths))[first:]:
            title = REGULARIZERS[key].title if place else "none"
            real, random = percent(curve.real[:, place]), percent(curve.random[:, place])
            rows.append([title, f"{strength:.4g}" if place else "", real, random])
    return Table("All strengths", columns, rows)


def _spread(values: Values) -> tuple[str, str]:
    return percent(values), f"{percent([values.min()])} to {percent([values.max()])}"


def _strengths_in_words(strengths: Values, places: Values) -> str:
    """The strengths between which the places of all seeds are."""
    low, high = int(np.floor(places.min())), int(np.ceil(places.max()))

    def name(place: int) -> str:
        return f"{strengths[place]:.4g}" if place else "none"

    return name(low) if low == high else f"{name(low)} to {name(high)}"


def _points(share: float) -> str:
    return f"{100 * share:.3g} point{'s' if share != 0.01 else ''}"


def _titles(keys: Sequence[str]) -> str:
    return ", ".join(REGULARIZERS[key].title for key in keys)


def _sentences(outcomes: Outcomes, config: Config) -> Iterator[str]:
    plain, left = outcomes.curves[DROPOUT], outcomes.left
    learnt = plain.random[:, 0]
    yield (
        f"Without regularisation: after {config.epochs} epochs a network trained on real labels is "
        f"right on {percent(plain.real[:, 0])} of the held-out examples, and one trained on random "
        f"labels has learnt {percent(learnt)} of them."
    )
    ranked = sorted(REGULARIZERS, key=lambda key: left[key].random.mean())
    each = "; ".join(
        f"{percent(left[key].random)} with {REGULARIZERS[key].title}" for key in ranked
    )
    yield (
        f"At a common accuracy: where the other seeds lose at most {_points(outcomes.tolerance)} "
        f"of accuracy on real data, regularisation leaves this share of random labels learnt: "
        f"{each}."
    )
    alone = outcomes.curves[ADVERSARIAL]
    if 0 in config.strengths(ADVERSARIAL):
        yield (
            f"Adversarial training alone: with critical points and no dropout, "
            f"{percent(alone.real[:, 1])} of the held-out examples are right and "
            f"{percent(alone.random[:, 1])} of the random labels are learnt."
        )
    ends = [key for key in REGULARIZERS if _reaches_end(outcomes, key)]
    if ends:
        yield (
            f"Caution on the range: the strongest setting that was tried costs no more than that "
            f"with {_titles(ends)}; a stronger one might leave less."
        )
    nothing = [key for key in REGULARIZERS if (left[key].places == 0).any()]
    if nothing:
        yield (
            f"Caution on the price: for at least one seed no strength is weak enough to help at "
            f"that price with {_titles(nothing)}; there it is as without regularisation."
        )
    if learnt.mean() < FITTED:
        yield (
            f"Caution: without regularisation only {percent(learnt)} of the random labels are "
            f"learnt. What is left with it is partly for want of epochs; more --epochs help."
        )


def _reaches_end(outcomes: Outcomes, key: str) -> bool:
    """Whether a seed's place is the last of the curve."""
    last = len(outcomes.curves[key].strengths) - 1
    return bool((outcomes.left[key].places == last).any())
