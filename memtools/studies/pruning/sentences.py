"""What the study of pruning shows, in sentences that say no more than the numbers."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from memtools.studies.claims import Verdict, judge
from memtools.studies.conditions import Condition
from memtools.studies.pruning.claims import easiest, hardest, hardest_over_all
from memtools.studies.pruning.config import CONDITIONS
from memtools.studies.pruning.methods import METHODS
from memtools.studies.pruning.outcomes import Outcomes
from memtools.studies.summary import Curves, percent

__all__ = ["points", "sentences"]

FITTED = 0.95
"""Training accuracy below which a network is not said to have learnt its labels by heart."""

CEILING = 0.97
"""Held-out accuracy above which there is little left to gain."""

OWN = "sensitivity"
OTHERS = tuple(score for score in METHODS if score != OWN)
NOISY = tuple(condition for condition in CONDITIONS if condition.labels)


def points(effects: Curves) -> str:
    """A difference of accuracies in percentage points, with its 95% interval over the seeds."""
    found = judge("C9", "", effects)
    if found.effect is None:
        return "not defined"
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{100 * found.effect:+.1f}{interval}"


def sentences(outcomes: Outcomes, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Sentences, each with its topic before a colon.

    Args:
        outcomes: The numbers of the study.
        verdicts: All verdicts on them.

    Yields:
        The answer, then each kind of data, then what bears on how far it goes.
    """
    yield _answer(outcomes)
    for condition in CONDITIONS:
        yield _of_condition(outcomes, condition)
    yield _easiest(outcomes)
    yield _windows(outcomes)
    yield _detection(outcomes)
    yield _fitting(outcomes)
    yield _many(outcomes, verdicts)
    yield from _cautions(outcomes)


def _answer(outcomes: Outcomes) -> str:
    words = {"holds": "better", "does not hold": "worse", "undecided": "no difference that shows"}

    def against(statement: Callable[[Outcomes, str, Condition], Verdict]) -> str:
        found = [statement(outcomes, OWN, condition).verdict for condition in CONDITIONS]
        return "; ".join(
            f"{words[verdict]} with "
            + _listed([c.title for c, own in zip(CONDITIONS, found, strict=True) if own == verdict])
            for verdict in dict.fromkeys(found)
        )

    return (
        f"Answer: how a network does on held-out examples when the training examples of highest "
        f"loss sensitivity are thrown out, against throwing out as many random ones: "
        f"{against(hardest)}. Against throwing out none: {against(hardest_over_all)}."
    )


def _of_condition(outcomes: Outcomes, condition: Condition) -> str:
    share = outcomes.config.judged_share(condition)

    def right(kind: str, score: str | None = None, dropped: float = share) -> str:
        return percent(outcomes.accuracy(condition, kind, score, dropped))

    gains = {score: outcomes.gain(condition, "hardest", score, share) for score in METHODS}
    best = max(OTHERS, key=lambda score: gains[score].mean())
    over_all = outcomes.over_all(condition, "hardest", OWN, share)
    best_over_all = outcomes.over_all(condition, "hardest", best, share)
    return (
        f"{_capital(condition.title)}: without the {percent([share])} of the examples of highest "
        f"loss sensitivity, {right('hardest', OWN)} of the held-out examples are right at the last "
        f"update; without as many random ones {right('random')}, with all examples "
        f"{right('full', dropped=0.0)}. In percentage points, with 95% intervals over the seeds, "
        f"that is {points(gains[OWN])} over random and {points(over_all)} over all. The best of "
        f"the other scores is {METHODS[best].title}, with {points(gains[best])} over random and "
        f"{points(best_over_all)} over all."
    )


def _easiest(outcomes: Outcomes) -> str:
    def gain(condition: Condition) -> str:
        share = outcomes.config.judged_share(condition)
        return points(outcomes.gain(condition, "easiest", OWN, share))

    differences = "; ".join(f"{gain(c)} with {c.title}" for c in CONDITIONS)
    fine = [c.title for c in CONDITIONS if easiest(outcomes, OWN, c).verdict == "holds"]
    return (
        f"Easiest: without as many examples of lowest loss sensitivity, the difference to random "
        f"ones is, in percentage points, {differences}. By a margin of "
        f"{100 * outcomes.config.margin:.3g}, it is shown to be no worse with {_listed(fine)}."
    )


def _windows(outcomes: Outcomes) -> str:
    config = outcomes.config
    share = 1 - config.window_width

    def best(condition: Condition) -> str:
        accuracy = {
            position: outcomes.accuracy(condition, "window", OWN, share, position)
            for position in config.window_positions
        }
        at = max(accuracy, key=lambda position: accuracy[position].mean())
        random = outcomes.accuracy(condition, "random", None, share)
        return (
            f"from {percent([at])} to {percent([at + config.window_width])} with {condition.title} "
            f"({percent(accuracy[at])} right, random ones {percent(random)})"
        )

    return (
        f"Windows: of windows of {percent([config.window_width])} of the examples, from the least "
        f"sensitive at 0% to the most at 100%, networks do best on that "
        f"{'; '.join(best(condition) for condition in CONDITIONS)}. Which one is best was "
        f"picked from {len(config.window_positions)} after the fact."
    )


def _detection(outcomes: Outcomes) -> str:
    def areas(score: str) -> str:
        return ", ".join(f"{outcomes.area(c, score).mean():.3f}" for c in NOISY)

    def mean(score: str) -> float:
        return float(np.mean([outcomes.area(c, score).mean() for c in NOISY]))

    def precisions(score: str) -> str:
        return ", ".join(
            percent(outcomes.numbers(c, "detection", score)["precision"]) for c in NOISY
        )

    levels = ", ".join(percent([c.labels]) for c in NOISY)
    ranked = sorted(METHODS, key=lambda score: -mean(score))
    place = ranked.index(OWN) + 1
    return (
        f"Finding random labels: the area under the ROC curve of the loss sensitivity is "
        f"{areas(OWN)} with {levels} random labels, that of CSL {areas('csl')}; by the mean of "
        f"these, the sensitivity is number {place} of {len(ranked)} scores, and "
        f"{METHODS[ranked[0]].title} is the first ({areas(ranked[0])}). Of as many of the hardest "
        f"examples as were corrupted, {precisions(OWN)} were by the sensitivity, and "
        f"{precisions('csl')} by CSL."
    )


def _fitting(outcomes: Outcomes) -> str:
    def fitted(kind: str, share: float | None) -> str:
        return ", ".join(
            percent(outcomes.numbers(c, kind, None, share)["train_accuracy"]) for c in CONDITIONS
        )

    levels = ", ".join(f"{100 * c.labels:.0f}" for c in CONDITIONS)
    return (
        f"Fitting: with {levels}% random labels, networks that are trained on all examples have "
        f"{fitted('full', 0.0)} of the labels that they were given right in the end, the scoring "
        f"networks {fitted('scoring', None)}."
    )


def _many(outcomes: Outcomes, verdicts: Sequence[Verdict]) -> str:
    compared = [verdict for verdict in verdicts if "margin" not in verdict.statement]
    held = [verdict for verdict in compared if verdict.verdict == "holds"]
    return (
        f"Many verdicts: each stands for itself. Of {len(compared)} about differences, on all "
        f"scores, {len(held)} hold; if there were no difference anywhere, about "
        f"{0.025 * len(compared):.0f} would be expected to hold by chance, and as many not to. "
        f"Those of one kind of data have networks in common, so that chance moves them together. "
        f"They are about one share for each kind of data, set beforehand: that of the noise, or "
        f"{percent([outcomes.config.headline_share])}. What is called the best of several was "
        f"picked after the fact, and its interval does not allow for that."
    )


def _cautions(outcomes: Outcomes) -> Iterator[str]:
    unfitted = [
        f"{c.title} ({percent(outcomes.numbers(c, 'full', None, 0.0)['train_accuracy'])})"
        for c in CONDITIONS
        if outcomes.numbers(c, "full", None, 0.0)["train_accuracy"].mean() < FITTED
    ]
    if unfitted:
        yield (
            f"Caution: labels are not learnt by heart yet with {_listed(unfitted)}, where wrong "
            f"ones do less harm than they might; more --epochs help."
        )
    full = {c: outcomes.accuracy(c, "full") for c in CONDITIONS}
    ceiling = [f"{c.title} ({percent(full[c])})" for c in CONDITIONS if full[c].mean() > CEILING]
    if ceiling:
        yield (
            f"Caution on the ceiling: nearly all held-out examples are right anyway with "
            f"{_listed(ceiling)}; there is little to gain by any choice of examples."
        )
    uneven = [
        f"{c.title} ({percent([largest.max()])})"
        for c in CONDITIONS
        if (largest := outcomes.numbers(c, "scoring")["largest_time_share"]).max() > 0.5
    ]
    if uneven and len(outcomes.config.evaluated()) > 2:
        yield (
            f"Caution on the sensitivity: one of {len(outcomes.config.evaluated())} evaluation "
            f"times holds more than half of the mean with {_listed(uneven)}; a lower "
            f"--scoring-learning-rate makes it about the whole training."
        )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if words else "none of the kinds of data"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
