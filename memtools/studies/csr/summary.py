"""What the study of critical samples came to: tables, verdicts, and sentences."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from memtools.studies.cells import Cell
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.csr.claims import csr_claims, learning_claims
from memtools.studies.csr.conditions import CONDITIONS, LEVELS, PARTLY_RANDOM_LABELS
from memtools.studies.csr.config import Config
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Curves, Outcome, Summary, Table, curves_of, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["FITTED", "Outcomes", "summarise"]

FITTED = 0.95
"""Training accuracy below which a network is not said to have fitted its examples."""

SATURATED = 0.98
"""Critical share above which the box is too large to tell conditions and epochs apart."""

CRITICAL = ("csr_validation", "csr_train")

COLUMNS = (
    "trained on",
    "training accuracy",
    "held-out best",
    "held-out last",
    "critical held-out",
    "critical training",
)

Outcomes = Mapping[str, Outcome]
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
    outcomes = {
        condition.key: Outcome(
            condition, curves_of(rows, [Cell(condition, seed) for seed in config.seeds])
        )
        for condition in CONDITIONS
    }
    curves = {key: outcome.curves for key, outcome in outcomes.items()}
    verdicts = [*csr_claims(curves), *learning_claims(curves)]
    write_verdicts(folder.path / "verdicts.json", verdicts)
    title = f"{config.dataset}: {len(data.train):,} training examples"
    numbers = Table(title, COLUMNS, [_row(outcome) for outcome in outcomes.values()])
    return Summary(outcomes, [numbers, verdict_table(verdicts)], list(_sentences(outcomes, config)))


def _row(outcome: Outcome) -> list[str]:
    curves = outcome.curves
    return [
        outcome.condition.title,
        percent(outcome.final("train_accuracy")),
        percent(curves["validation_accuracy"].max(1)),
        percent(outcome.final("validation_accuracy")),
        *("→".join(map(_whole, _course(curves[name]))) + "%" for name in CRITICAL),
    ]


def _course(values: Curves) -> tuple[float, float, float]:
    """A critical share after the first epoch, at the top of its mean curve, and at the end."""
    mean = values.mean(0)
    return mean[0], mean.max(), mean[-1]


def _whole(share: float) -> str:
    """In whole percent; 0 and 100 are just that, as cells have room for no more."""
    return str(round(100 * share) if share in (0, 1) else min(max(round(100 * share), 1), 99))


def _sentences(outcomes: Outcomes, config: Config) -> Iterator[str]:
    real, labels, inputs = (outcomes[c.key] for c in (REAL, RANDOM_LABELS, RANDOM_INPUTS))

    def right(outcome: Outcome) -> str:
        return percent(outcome.final("train_accuracy"))

    yield (
        f"Fitting: after {config.epochs} epochs the network has {right(real)} of the training "
        f"examples right with real labels, {right(labels)} with all labels random and "
        f"{right(inputs)} with all inputs random."
    )

    by_level = "; ".join(
        f"{', '.join(percent(outcomes[c.key].final('csr_validation')) for c in levels)} with "
        f"0, 20, 40, 60, 80 and 100% {kind}"
        for kind, levels in LEVELS.items()
    )
    yield (
        f"Noise: in the end, {config.search_in_words} finds another predicted class within "
        f"±{config.radius:.3g} per pixel around these shares of the held-out examples: {by_level}."
    )

    def course(outcome: Outcome, part: str) -> str:
        values, epochs = outcome.curves[f"csr_{part}"], outcome.curves["epoch"][0]
        first, top, last = (percent([share]) for share in _course(values))
        place = values.mean(0).argmax()
        over = f" over {top} (epoch {epochs[place]:.0f})" if 0 < place < len(epochs) - 1 else ""
        return f"from {first} after the first epoch{over} to {last}"

    for topic, part in (("Held out", "validation"), ("Training examples", "train")):
        yield (
            f"{topic}: the critical share goes {course(real, part)} with real labels, "
            f"{course(labels, part)} with all labels random, and {course(inputs, part)} with all "
            f"inputs random."
        )

    yield _memorising([outcomes[condition.key] for condition in PARTLY_RANDOM_LABELS])

    unfitted = [
        f"{outcome.condition.title} ({right(outcome)})"
        for outcome in outcomes.values()
        if outcome.final("train_accuracy").mean() < FITTED
    ]
    if unfitted:
        yield (
            f"Caution: not fitted yet: {', '.join(unfitted)}. What the paper claims is about "
            f"networks that are trained to the end; more --epochs help."
        )
    saturated = [f"{o.condition.title}" for o in outcomes.values() if _saturates(o)]
    if saturated:
        yield (
            f"Caution on the box: nearly all examples searched are critical in the end with "
            f"{', '.join(saturated)}. Differences, levelling off and falling are then limited by "
            f"the size of the box; a smaller --radius tells more."
        )


def _memorising(outcomes: Sequence[Outcome]) -> str:
    means = [{name: values.mean(0) for name, values in o.curves.items()} for o in outcomes]
    best = [int(mean["validation_accuracy"].argmax()) for mean in means]

    def at_best(name: str) -> str:
        values = [mean[name][place] for mean, place in zip(means, best, strict=True)]
        return ", ".join(f"{v:.0f}" if name == "epoch" else percent([v]) for v in values)

    def last(name: str) -> str:
        return ", ".join(percent([mean[name][-1]]) for mean in means)

    return (
        f"Memorising: with 20, 40, 60 and 80% random labels, validation accuracy is best at epoch "
        f"{at_best('epoch')} ({at_best('validation_accuracy')}), where training accuracy is "
        f"{at_best('train_accuracy')}. From there to the end, validation accuracy goes to "
        f"{last('validation_accuracy')}, and the critical share of held-out examples from "
        f"{at_best('csr_validation')} to {last('csr_validation')} (all of the mean over the seeds)."
    )


def _saturates(outcome: Outcome) -> bool:
    return bool(
        np.maximum(outcome.final("csr_validation"), outcome.final("csr_train")).mean() >= SATURATED
    )
