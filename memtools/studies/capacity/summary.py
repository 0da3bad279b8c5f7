"""What the study of capacity came to: a table, verdicts, and sentences."""

from collections.abc import Iterator

import numpy as np

from memtools.studies.capacity.config import Config
from memtools.studies.capacity.experiment import NOISE, REMOVED
from memtools.studies.capacity.outcomes import KINDS, Outcomes, outcomes_of
from memtools.studies.claims import Verdict, judge
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Summary, Table, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["capacity_claims", "summarise", "title_of"]


def title_of(kind: str) -> str:
    """A kind of noise for people."""
    return "examples removed" if kind == REMOVED else f"random {kind}"


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :class:`~memtools.studies.capacity.outcomes.Outcomes`.
    """
    outcomes = outcomes_of(folder.rows(), config)
    verdicts = list(capacity_claims(outcomes))
    write_verdicts(folder.path / "verdicts.json", verdicts)
    title = f"{config.dataset}: {len(data.train):,} training examples; best held-out accuracy"
    columns = ("noise", *(f"width {width}" for width in config.widths), "sufficient")
    numbers = Table(title, columns, list(_rows(outcomes)))
    return Summary(outcomes, [numbers, verdict_table(verdicts)], list(_sentences(outcomes)))


def capacity_claims(outcomes: Outcomes) -> Iterator[Verdict]:
    """C4: with more noise the smallest width that suffices grows, and not for want of examples.

    The statistic, one number per seed: the slope of log2 of the smallest sufficient width against
    the share of noise, and how much it is above that with the same examples removed; and the same
    without a threshold, of how much narrower networks fall short of the widest.

    Args:
        outcomes: All networks.

    Yields:
        The verdicts.
    """
    slopes = {kind: outcomes.slopes(kind) for kind in KINDS}
    shortfalls = {kind: outcomes.shortfall_slopes(kind) for kind in KINDS}
    statements = {
        "the more noise, the wider the smallest network that suffices "
        "(slope of log2 of its width against the share of noise)": lambda k: slopes[k],
        "it widens more than when as many examples are removed "
        "(difference of the slopes)": lambda k: slopes[k] - slopes[REMOVED],
        "the more noise, the more narrower networks fall short of the widest "
        "(slope of the difference of accuracies against the share of noise)": lambda k: shortfalls[
            k
        ],
        "that grows more than when as many examples are removed "
        "(difference of the slopes)": lambda k: shortfalls[k] - shortfalls[REMOVED],
    }
    for statement, effects in statements.items():
        for kind in NOISE:
            yield judge("C4", statement, effects(kind), about=title_of(kind))


def _rows(outcomes: Outcomes) -> Iterator[list[str]]:
    for kind in KINDS:
        widths = outcomes.sufficient(kind)
        for place, share in enumerate(outcomes.config.levels):
            if share == 0 and kind != KINDS[0]:
                continue
            accuracies = outcomes.best[kind][:, place]
            yield [
                f"{share:.0%} {title_of(kind)}" if share else "no noise",
                *(percent(accuracies[:, w]) for w in range(accuracies.shape[1])),
                _typical(widths[:, place]),
            ]


def _typical(widths: np.ndarray) -> str:
    """The geometric mean of widths."""
    return f"{2 ** np.log2(widths).mean():.0f}"


def _sentences(outcomes: Outcomes) -> Iterator[str]:
    config = outcomes.config
    levels = ", ".join(f"{100 * share:.0f}" for share in config.levels)

    def widths(kind: str) -> str:
        return ", ".join(_typical(column) for column in outcomes.sufficient(kind).T)

    def slopes(kind: str, tolerance: float | None = None) -> str:
        # Not -0.0.
        return f"{round(outcomes.slopes(kind, tolerance).mean(), 1) + 0.0:+.1f}"

    for kind in NOISE:
        paper = (
            "the paper found that more noise takes more width"
            if kind == "inputs"
            else "the paper found no such relation on CIFAR-10"
        )
        yield (
            f"{title_of(kind).capitalize()}: the smallest width whose best held-out accuracy is "
            f"within {100 * config.tolerance:.3g} points of the best of all widths is "
            f"{widths(kind)} with {levels}% {title_of(kind)} (geometric means over the seeds): "
            f"{slopes(kind)} doublings by a straight line from 0 to 100%; {paper}."
        )
    yield (
        f"Control: with as many examples removed instead, and just as many updates, it is "
        f"{widths(REMOVED)}: {slopes(REMOVED)} doublings."
    )
    highest = config.levels[-1]
    yield (
        "Without a threshold: on average, narrower networks are "
        + "; ".join(
            ", ".join(f"{100 * value:.1f}" for value in outcomes.shortfalls(kind).mean(0))
            + f" points worse than the widest with {levels}% {title_of(kind)}"
            for kind in KINDS
        )
        + "."
    )
    yield (
        f"Fitting: in the end, with {highest:.0%} noise, the narrowest network has "
        + " and ".join(
            f"{percent(outcomes.fitted[k][:, -1, 0])} of the training examples right with "
            f"{title_of(k)}"
            for k in NOISE
        )
        + ", the widest "
        + " and ".join(percent(outcomes.fitted[k][:, -1, -1]) for k in NOISE)
        + "."
    )
    yield (
        "Tolerance: the doublings are "
        + "; ".join(
            ", ".join(f"{slopes(kind, tolerance)} ({title_of(kind)})" for kind in KINDS)
            + f" with {100 * tolerance:.3g} point{'s' if tolerance != 0.01 else ''} of it"
            for tolerance in (config.tolerance / 2, config.tolerance * 2)
        )
        + "."
    )
    yield from _limits(outcomes)


def _limits(outcomes: Outcomes) -> Iterator[str]:
    """Where the smallest sufficient width is at an end of those tried."""
    for topic, end, what in (
        ("at the widest", len(outcomes.config.widths) - 1, "widest network, a wider"),
        ("at the narrowest", 0, "narrowest network, a narrower"),
    ):
        found = []
        for kind in KINDS:
            at_end = (outcomes.places(kind) == end).sum(0)
            first = 0 if kind == KINDS[0] else 1
            found += [
                f"{count} of {len(outcomes.config.seeds)} seeds with "
                + (f"{share:.0%} {title_of(kind)}" if share else "no noise")
                for share, count in zip(outcomes.config.levels[first:], at_end[first:], strict=True)
                if count
            ]
        if found:
            yield (
                f"Caution {topic}: the smallest sufficient one is the {what} one might be too"
                if end == 0
                else f"Caution {topic}: the smallest sufficient one is the {what} one might do "
                "better"
            ) + f", for {'; '.join(found)}. These widths count as they are."
