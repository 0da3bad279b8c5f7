"""Claims C6 and C7 of Arpit et al. (2017), section 4, as checks."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from memtools.extras import require
from memtools.studies.claims import Values, Verdict, judge
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL, Condition
from memtools.studies.csr.conditions import LEVELS, PARTLY_RANDOM_LABELS, WHOLLY

__all__ = ["HIGH", "csr_claims", "learning_claims", "per_seed", "rank_correlation", "turns"]

HIGH = 0.9
"""Share of the final training accuracy from which on it is called high."""

Curves = Mapping[str, Values]
"""Curves of one condition by name, each of shape ``(seeds, times)``; ``"epoch"`` is one of them."""


def csr_claims(curves: Mapping[str, Curves]) -> Iterator[Verdict]:
    """C6: how the critical sample ratio depends on the noise, and on the time of training.

    The statistics, one number per seed: over conditions, differences at the last epoch and rank
    correlations; over the training, gains between the first evaluated epoch, those a third and two
    thirds through, the last one, and the turning point of :func:`turns`.

    Args:
        curves: By key of the condition: ``"epoch"``, ``"csr_train"`` and ``"csr_validation"``.

    Yields:
        The verdicts.
    """
    held_out = {key: of_condition["csr_validation"] for key, of_condition in curves.items()}
    for noise in (RANDOM_LABELS, RANDOM_INPUTS):
        yield judge(
            "C6",
            "critical share, held out, ends higher than on real data "
            "(difference at the last epoch)",
            held_out[noise.key][:, -1] - held_out[REAL.key][:, -1],
            about=noise.title,
        )
    for kind, levels in LEVELS.items():
        # Nothing but noise is no higher level of the same, but the statement before.
        partly = levels[:-1]
        last = np.stack([held_out[condition.key][:, -1] for condition in partly], axis=1)
        shares = [condition.labels + condition.inputs for condition in partly]
        yield judge(
            "C6",
            "critical share, held out, rises with the share of noise, 0 to 80% "
            "(Spearman's rank correlation at the last epoch)",
            [rank_correlation(shares, of_seed) for of_seed in last],
            about=kind,
        )
    yield from _by_statement("C6", {c: _over_training(curves[c.key]) for c in WHOLLY})


def learning_claims(curves: Mapping[str, Curves]) -> Iterator[Verdict]:
    """C7: with random labels, patterns come first, and what comes then costs generalisation.

    The best epoch is the turning point of the validation accuracy, see :func:`turns`.

    Args:
        curves: By key of the condition: those of :func:`csr_claims`, ``"train_accuracy"`` and
            ``"validation_accuracy"``.

    Yields:
        The verdicts, three for each share of random labels.
    """
    yield from _by_statement("C7", {c: _learning(curves[c.key]) for c in PARTLY_RANDOM_LABELS})


def turns(curves: Curves, name: str) -> list[int | None]:
    """For each seed, the place where a curve turns from rising to falling, if it does.

    That is the highest place of the mean curve **of the other seeds**: the highest of a seed's own
    would lie above its end by luck alone. It is looked for after the first evaluated epoch and in
    the first two thirds of the training, so that a curve that only rises, or only falls, has a
    turning point at which it is seen to do so.

    Args:
        curves: Curves of one condition.
        name: Which of them.

    Returns:
        A place among the evaluated epochs for each seed; ``None`` where there is no such epoch.
    """
    values, epochs = curves[name], curves["epoch"][0]
    allowed = np.flatnonzero(epochs <= 2 * epochs[-1] / 3)[1:]
    if len(allowed) == 0:
        return [None] * len(values)

    def others(seed: int) -> Values:
        return values if len(values) == 1 else np.delete(values, seed, axis=0)

    means = [others(seed).mean(0)[allowed] for seed in range(len(values))]
    return [int(allowed[mean.argmax()]) for mean in means]


def per_seed(values: Values, places: Sequence[int | None]) -> Values:
    """The value of each seed at a place of its own; NaN where there is none."""
    return np.array(
        [
            np.nan if place is None else of_seed[place]
            for of_seed, place in zip(values, places, strict=True)
        ]
    )


def rank_correlation(x: Sequence[float] | Values, y: Sequence[float] | Values) -> float:
    """Spearman's; NaN where all values are the same."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(require("scipy.stats").spearmanr(x, y).statistic)


def _by_statement(
    claim: str, effects: Mapping[Condition, Mapping[str, Values]]
) -> Iterator[Verdict]:
    """Verdicts for each statement about each condition, from the numbers of each."""
    for statement in next(iter(effects.values())):
        for condition, of_condition in effects.items():
            yield judge(claim, statement, of_condition[statement], about=condition.title)


def _over_training(curves: Curves) -> dict[str, Values]:
    held_out, training = curves["csr_validation"], curves["csr_train"]
    top = per_seed(training, turns(curves, "csr_train"))
    return {
        "critical share, held out, rises over the training "
        "(at the last epoch less at the first)": held_out[:, -1] - held_out[:, 0],
        "critical share, held out, rises less and less "
        "(gain in the first third less gain in the last third)": _levelling(
            held_out, curves["epoch"][0]
        ),
        "critical share, training examples, rises first "
        "(at its turning point less at the first epoch)": top - training[:, 0],
        "critical share, training examples, then falls "
        "(at its turning point less at the last epoch)": top - training[:, -1],
    }


def _learning(curves: Curves) -> dict[str, Values]:
    best = turns(curves, "validation_accuracy")
    fitted, right = curves["train_accuracy"], curves["validation_accuracy"]
    critical = curves["csr_validation"]
    return {
        f"validation accuracy is best before training accuracy is high ({HIGH:.0%} of the final "
        "training accuracy less that at the best epoch)": HIGH * fitted[:, -1]
        - per_seed(fitted, best),
        "validation accuracy then falls (at the best epoch less at the last)": per_seed(right, best)
        - right[:, -1],
        "while it falls, the critical share, held out, rises "
        "(at the last epoch less at the best)": critical[:, -1] - per_seed(critical, best),
    }


def _levelling(values: Values, epochs: Values) -> Values:
    """Gain in the first third of the training less gain in the last; NaN if times are too few."""
    third, two_thirds = (int(abs(epochs - part * epochs[-1] / 3).argmin()) for part in (1, 2))
    if not 0 < third < two_thirds < len(epochs) - 1:
        return np.full(len(values), np.nan)
    return (values[:, third] - values[:, 0]) - (values[:, -1] - values[:, two_thirds])
