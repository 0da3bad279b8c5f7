"""C9, the question that the paper leaves open, as checks."""

from collections.abc import Iterator

from memtools.studies.claims import Verdict, judge
from memtools.studies.conditions import Condition
from memtools.studies.pruning.config import CONDITIONS
from memtools.studies.pruning.methods import METHODS
from memtools.studies.pruning.outcomes import Outcomes
from memtools.studies.summary import percent

__all__ = ["detection_claims", "easiest", "hardest", "hardest_over_all", "pruning_claims"]

DIFFERENCE = "(difference of held-out accuracy)"


def hardest(outcomes: Outcomes, score: str, condition: Condition) -> Verdict:
    """Whether it is better to drop the hardest than as many at random."""
    share = outcomes.config.judged_share(condition)
    return judge(
        _claim(score),
        f"better without the highest by {METHODS[score].title} than without as many random "
        f"examples {DIFFERENCE}",
        outcomes.gain(condition, "hardest", score, share),
        about=_about(share, condition),
    )


def hardest_over_all(outcomes: Outcomes, score: str, condition: Condition) -> Verdict:
    """Whether it is better to drop the hardest than nothing."""
    share = outcomes.config.judged_share(condition)
    return judge(
        _claim(score),
        f"better without the highest by {METHODS[score].title} than with all examples {DIFFERENCE}",
        outcomes.over_all(condition, "hardest", score, share),
        about=_about(share, condition),
    )


def easiest(outcomes: Outcomes, score: str, condition: Condition) -> Verdict:
    """Whether it is no worse to drop the easiest than as many at random."""
    share, margin = outcomes.config.judged_share(condition), outcomes.config.margin
    return judge(
        _claim(score),
        f"no worse without the lowest by {METHODS[score].title} than without as many random "
        f"examples (difference of held-out accuracy, plus a margin of {margin:.3g})",
        outcomes.gain(condition, "easiest", score, share) + margin,
        about=_about(share, condition),
    )


def pruning_claims(outcomes: Outcomes) -> Iterator[Verdict]:
    """What becomes of held-out accuracy, by score and kind of data.

    Args:
        outcomes: The numbers of the study.

    Yields:
        For each score, three statements about each kind of data, at one share each.
    """
    for score in METHODS:
        for statement in (hardest, hardest_over_all, easiest):
            for condition in CONDITIONS:
                yield statement(outcomes, score, condition)


def detection_claims(outcomes: Outcomes) -> Iterator[Verdict]:
    """How well the loss sensitivity finds corrupted examples.

    Args:
        outcomes: The numbers of the study.

    Yields:
        For each noise, a verdict against chance and against two other scores.
    """
    for other in (None, "csl", "input_gradient"):
        for condition in CONDITIONS:
            if not condition.labels:
                continue
            area = outcomes.area(condition, "sensitivity")
            if other is None:
                than, effects = "chance (area under the ROC curve less 1/2)", area - 0.5
            else:
                than = f"{METHODS[other].title} does (difference of areas under the ROC curve)"
                effects = area - outcomes.area(condition, other)
            yield judge(
                "C9",
                f"loss sensitivity finds random labels better than {than}",
                effects,
                about=condition.title,
            )


def _claim(score: str) -> str:
    return "C9" if score == "sensitivity" else "ours"


def _about(share: float, condition: Condition) -> str:
    return f"{condition.title}, {percent([share])} of the examples dropped"
