"""What the study of early stopping came to: tables, verdicts, and sentences."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from memtools.studies.claims import Verdict, judge
from memtools.studies.data import Data
from memtools.studies.early_stopping.config import CONDITIONS, Config
from memtools.studies.early_stopping.outcomes import RANDOM, Choices, Outcomes, outcomes_of
from memtools.studies.early_stopping.rules import LABEL_FREE, RULES
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Summary, Table, percent
from memtools.studies.verdicts import write_verdicts

__all__ = ["TITLES", "statements", "stopping_verdicts", "summarise"]

TITLES = {key: rule.title for key, rule in RULES.items()} | {RANDOM: "an epoch drawn at random"}
"""Rules for people."""

NOTHING_LOST = 0.02
"""Test accuracy lost by training to the end below which stopping early has little to gain."""

MARKS = {"holds": "yes", "does not hold": "no", "undecided": "?"}


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :data:`~memtools.studies.early_stopping.outcomes.Outcomes`.
    """
    outcomes = outcomes_of(folder.rows(), config)
    verdicts = list(stopping_verdicts(outcomes, config.margin))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    title = f"{config.dataset}: {len(data.train):,} training examples; test accuracy given away"
    columns = ("rule", *(condition.title for condition in CONDITIONS))
    numbers = Table(title, columns, [_row(key, outcomes) for key in _ranked(outcomes)])
    tables = [numbers, *_verdict_tables(verdicts, config.margin)]
    return Summary(outcomes, tables, list(_sentences(outcomes, config, verdicts)))


def statements(margin: float) -> dict[str, str]:
    """What is asked of every rule without labels, by what it is compared with."""
    return {
        "last": "a rule without labels is better than training to the end "
        "(difference of test accuracies)",
        RANDOM: "a rule without labels is better than an epoch drawn at random "
        "(difference of test accuracies)",
        "validation": f"a rule without labels is less than {_points(margin)} worse than "
        f"validation accuracy ({margin:.3g} and the difference of test accuracies)",
    }


def stopping_verdicts(outcomes: Outcomes, margin: float) -> Iterator[Verdict]:
    """Whether rules without labels are worth anything, for each rule and share of random labels.

    The statistic, one number per seed: regret of the other rule less that of the rule, which is
    the difference of their test accuracies.

    Args:
        outcomes: What the rules chose.
        margin: By how much a rule may be worse than validation and still as good.

    Yields:
        The verdicts.
    """
    for other, statement in statements(margin).items():
        for key in LABEL_FREE:
            for outcome in outcomes.values():
                gain = outcome.regrets[other] - outcome.regrets[key]
                yield judge(
                    "ours",
                    statement,
                    gain + margin if other == "validation" else gain,
                    about=f"{TITLES[key]}, {outcome.condition.title}",
                )


def _points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:.3g} points"


def _noisy(outcomes: Outcomes) -> list[Choices]:
    return [outcome for outcome in outcomes.values() if outcome.condition.labels]


def _mean_regret(key: str, outcomes: Outcomes) -> float:
    """Over the seeds and the shares of random labels above none."""
    return float(np.mean([outcome.regrets[key].mean() for outcome in _noisy(outcomes)]))


def _ranked(outcomes: Outcomes) -> list[str]:
    return sorted(TITLES, key=lambda key: _mean_regret(key, outcomes))


def _row(key: str, outcomes: Outcomes) -> list[str]:
    cells = [TITLES[key]]
    for outcome in outcomes.values():
        points = f"{100 * outcome.regrets[key].mean():.1f}"
        if key != RANDOM:
            points += f" @{_epochs(outcome, key)}"
        cells.append(points)
    return cells


def _epochs(outcome: Choices, key: str) -> str:
    """The middle one of the epochs that a rule chooses, over the seeds."""
    return f"{np.median(1 + outcome.chosen[key]):.0f}"


def _verdict_tables(verdicts: Sequence[Verdict], margin: float) -> Iterator[Table]:
    """A table for each statement: a row for each rule, a column for each share of noise."""
    titles = {
        "last": "Better than training to the end? Points of test accuracy gained",
        RANDOM: "Better than an epoch drawn at random? Points gained",
        "validation": f"Less than {_points(margin)} worse than validation? Points gained over that",
    }
    columns = ("rule without labels", *(condition.title for condition in CONDITIONS))
    for other, statement in statements(margin).items():
        of_statement = iter([v for v in verdicts if v.statement == statement])
        rows = [
            [TITLES[key], *(_cell(next(of_statement)) for _ in CONDITIONS)] for key in LABEL_FREE
        ]
        yield Table(titles[other], columns, rows)


def _cell(verdict: Verdict) -> str:
    if verdict.effect is None or verdict.low is None or verdict.high is None:
        effect = "" if verdict.effect is None else f" {100 * verdict.effect:+.1f}"
        return f"{MARKS[verdict.verdict]}{effect}"
    reach = (verdict.high - verdict.low) / 2
    return f"{MARKS[verdict.verdict]} {100 * verdict.effect:+.1f} ± {100 * reach:.1f}"


def _sentences(outcomes: Outcomes, config: Config, verdicts: Sequence[Verdict]) -> Iterator[str]:
    shares = ", ".join(f"{100 * condition.labels:.0f}" for condition in CONDITIONS)
    tests = [outcome.curves["test_accuracy"] for outcome in outcomes.values()]
    fitted = [outcome.final("train_accuracy") for outcome in outcomes.values()]
    yield (
        f"Need: with {shares}% random labels, test accuracy is "
        f"{', '.join(percent(test.max(1)) for test in tests)} at its best epoch and "
        f"{', '.join(percent(test[:, -1]) for test in tests)} after the last, when "
        f"{', '.join(map(percent, fitted))} of the training labels are right."
    )

    def regret(key: str) -> str:
        return f"{100 * _mean_regret(key, outcomes):.1f}"

    best, *_ = (key for key in _ranked(outcomes) if key in LABEL_FREE)
    yield (
        f"Finding: over all shares of random labels above none, the rule without labels that gives "
        f"away least, of {len(LABEL_FREE)} tried, is “{TITLES[best]}”: {regret(best)} points of "
        f"test accuracy less than at the best epoch. {TITLES['validation'].capitalize()} gives "
        f"away {regret('validation')}, with {config.few_labels} labels {regret('few')}, the last "
        f"epoch {regret('last')}, an epoch drawn at random {regret(RANDOM)}."
    )
    for topic, keys in (
        ("Critical share", [key for key in LABEL_FREE if key.startswith("csr")]),
        ("Gini coefficient", [key for key in LABEL_FREE if "gini" in key]),
    ):
        yield (
            f"{topic}: "
            + "; ".join(
                f"“{TITLES[key]}” chooses epoch "
                + ", ".join(_epochs(outcome, key) for outcome in outcomes.values())
                + f" and gives away {regret(key)} points"
                for key in keys
            )
            + f" (with {shares}% random labels, medians over the seeds; the best epochs are "
            + ", ".join(f"{np.median(1 + test.argmax(1)):.0f}" for test in tests)
            + ")."
        )
    for topic, other in (("End", "last"), ("Chance", RANDOM), ("Validation", "validation")):
        statement = statements(config.margin)[other]
        counts = Counter(v.verdict for v in verdicts if v.statement == statement)
        yield (
            f"{topic}: that {statement.split(' (')[0]} holds for {counts['holds']} of "
            f"{counts.total()} pairs of a rule and a share of noise, does not hold for "
            f"{counts['does not hold']}, and is undecided for {counts['undecided']}."
        )
    nothing = [
        outcome.condition.title
        for outcome in outcomes.values()
        if outcome.regrets["last"].mean() < NOTHING_LOST
    ]
    if nothing:
        yield (
            f"Caution: with {', '.join(nothing)}, training to the end costs less than "
            f"{100 * NOTHING_LOST:.0f} points; there is little to gain by stopping."
        )
