"""What the study of easy examples came to: a table, verdicts, and sentences."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memtools.studies import summary
from memtools.studies.cells import Cell
from memtools.studies.claims import Values, Verdict, judge
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.data import Data
from memtools.studies.easy_examples.config import Config
from memtools.studies.easy_examples.experiment import CONDITIONS, SCORE
from memtools.studies.folder import RunFolder, read_parquet
from memtools.studies.summary import Curves, Summary, Table, curves_of, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["Outcome", "summarise"]

NEARLY_NONE = 0.01
"""Share of unanimous examples below which there are almost none; ours."""

REAL_DIFFER_MORE = "real examples differ more in how easy they are than randomly labelled ones"

SPREADS = (
    ("over_dispersion", "all examples"),
    ("over_dispersion_within_classes", "among examples of one label"),
)


@dataclass(frozen=True)
class Outcome(summary.Outcome):
    """All seeds of one condition.

    Attributes:
        shares: Share of the networks that get an example right, ascending, shape ``(seeds, n)``.
        networks: Number of networks.
    """

    shares: Curves
    networks: int

    @property
    def unanimous(self) -> Curves:
        """Share of the examples on which all networks are right, or all are wrong."""
        return self.final("always_right") + self.final("never_right")


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are an :class:`Outcome` for each condition's key.
    """
    rows = folder.rows()
    outcomes = {}
    for condition in CONDITIONS:
        trained = [Cell(condition, seed) for seed in config.seeds]
        tables = [read_parquet(folder.path / "examples" / f"{c.name}.parquet") for c in trained]
        outcomes[condition.key] = Outcome(
            condition,
            curves_of(rows, trained),
            np.sort(np.array([table[SCORE] for table in tables]), axis=1),
            config.networks,
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite gets no verdict
        verdicts = list(_verdicts(outcomes))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    columns = (
        "trained on",
        "mean share right",
        "over-dispersion",
        "within classes",
        "binomial: 99% lie in",
        "always right",
        "never right",
    )
    numbers = Table(
        f"{config.dataset}: {len(data.train):,} training examples",
        columns,
        [_row(outcome) for outcome in outcomes.values()],
    )
    return Summary(outcomes, [numbers, verdict_table(verdicts)], list(_sentences(outcomes)))


def _row(outcome: Outcome) -> list[str]:
    def mean(name: str) -> str:
        return f"{outcome.final(name).mean():.2f}"

    return [
        outcome.condition.title,
        percent(outcome.final("mean_share_right")),
        mean("over_dispersion"),
        mean("over_dispersion_within_classes"),
        f"{mean('binomial_low')} to {mean('binomial_high')}",
        percent(outcome.final("always_right")),
        percent(outcome.final("never_right")),
    ]


def _verdicts(outcomes: dict[str, Outcome]) -> Iterator[Verdict]:
    real, inputs = outcomes[REAL.key], outcomes[RANDOM_INPUTS.key]
    ratio = "logarithm of the ratio of over-dispersions"
    for more, less, statement in (
        (REAL, RANDOM_LABELS, REAL_DIFFER_MORE),
        (RANDOM_LABELS, RANDOM_INPUTS, "randomly labelled ones differ more than random inputs"),
    ):
        for name, where in SPREADS:
            spread = _log(outcomes[more.key], name) - _log(outcomes[less.key], name)
            yield judge("C1", f"{statement} ({ratio})", spread, about=where)
    for name, where in SPREADS:
        yield judge(
            "C1",
            "random inputs differ no more than independent draws would (logarithm of the upper end "
            "of the binomial's 99% over the over-dispersion)",
            _log(inputs, "binomial_high") - _log(inputs, name),
            about=where,
        )
    yield judge(
        "C1",
        "on more real examples than random inputs all networks agree (difference of shares)",
        real.unanimous - inputs.unanimous,
    )
    yield judge(
        "C1",
        "on more real examples than by chance all networks agree (difference of shares)",
        real.unanimous - real.final("unanimous_by_chance"),
    )
    yield judge(
        "C1",
        f"on almost no random input all networks agree ({percent([NEARLY_NONE])} less the share)",
        NEARLY_NONE - inputs.unanimous,
    )


def _log(outcome: Outcome, name: str) -> Values:
    """Logarithm of a number of the lines; none where it is 0."""
    values = outcome.final(name)
    return np.log(np.where(values > 0, values, np.nan))


def _sentences(outcomes: dict[str, Outcome]) -> Iterator[str]:
    real, labels, inputs = (outcomes[c.key] for c in (REAL, RANDOM_LABELS, RANDOM_INPUTS))
    networks = real.networks
    yield (
        f"Agreement: of {networks} networks, all get {percent(real.final('always_right'))} of the "
        f"real examples right and none gets {percent(real.final('never_right'))} right; with "
        f"random labels it is {percent(labels.final('always_right'))} and "
        f"{percent(labels.final('never_right'))}, with random inputs "
        f"{percent(inputs.final('always_right'))} and {percent(inputs.final('never_right'))}."
    )
    low, high = (inputs.final(f"binomial_{end}").mean() for end in ("low", "high"))
    yield (
        f"Spread: the share of networks that are right varies "
        f"{real.final('over_dispersion').mean():.3g} times as much over real examples as it would "
        f"if all were equally hard, {labels.final('over_dispersion').mean():.3g} times with random "
        f"labels and {inputs.final('over_dispersion').mean():.3g} times with random inputs; for "
        f"independent draws 99% lie between {low:.2f} and {high:.2f}."
    )
    within = "over_dispersion_within_classes"
    yield (
        f"Labels: some labels are easier than others, on noise too, if only because they are more "
        f"frequent. Among examples of one label the factors are {real.final(within).mean():.3g}, "
        f"{labels.final(within).mean():.3g} and {inputs.final(within).mean():.3g}."
    )
