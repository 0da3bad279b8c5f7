"""Times until all training examples are right, some of which are only known to be longer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from memtools.studies.claims import Values, Verdict, judge

__all__ = ["Bounds", "Times", "judge_bounds"]


@dataclass(frozen=True)
class Bounds:
    """A number for each seed that is known exactly, or from one side, or not at all.

    Attributes:
        low: Largest number that it is known not to be below, or minus infinity.
        high: Smallest number that it is known not to be above, or infinity.
    """

    low: Values
    high: Values

    def __sub__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.low - other.high, self.high - other.low)

    def shown(self, form: str, scale: Callable[[float], float] = float) -> str:
        """The mean in words: a number, ``≥`` or ``≤`` a number, a range, or a question mark.

        Args:
            form: Format of a number.
            scale: Applied to the mean; ``exp`` makes geometric means of logarithms.
        """
        low, high = float(self.low.mean()), float(self.high.mean())
        least, most = (format(scale(end), form) if isfinite(end) else "" for end in (low, high))
        if low == high:
            return least
        if least and most:
            return f"{least} to {most}"
        return f"≥ {least}" if least else f"≤ {most}" if most else "?"


@dataclass(frozen=True)
class Times:
    """How long trainings took over sizes or widths.

    Attributes:
        x: Sizes or widths, ascending, shape ``(k,)``.
        epochs: Epochs until all training examples were right, shape ``(seeds, k)``; where that
            never happened, epochs of the whole training.
        updates: The same in updates.
        is_censored: Where it never happened.
    """

    x: Values
    epochs: Values
    updates: Values
    is_censored: NDArray[np.bool_]

    def logs(self, place: int) -> Bounds:
        """Logarithm of the epochs at one size or width."""
        low = np.log(self.epochs[:, place])
        return Bounds(low, np.where(self.is_censored[:, place], np.inf, low))

    def slopes(self) -> Bounds:
        r"""Least-squares slope of log(epochs) against log(x) for each seed.

        The slope is a sum :math:`\sum_k c_k \log t_k`, :math:`c_k` being positive above the mean of
        log(x) and negative below. A time known only to be longer makes the sum larger by an unknown
        amount where :math:`c_k` is positive, and smaller where it is negative.
        """
        centred = np.log(self.x) - np.log(self.x).mean()
        weights = centred / (centred**2).sum()
        known = np.log(self.epochs) @ weights
        may_rise = (self.is_censored & (weights > 0)).any(1)
        may_fall = (self.is_censored & (weights < 0)).any(1)
        return Bounds(np.where(may_fall, -np.inf, known), np.where(may_rise, np.inf, known))


def judge_bounds(claim: str, statement: str, effect: Bounds, *, about: str) -> Verdict:
    """A verdict from numbers that are partly known from one side only.

    Each number is at least its lower bound, so is their expectation, and the statement holds if it
    holds of the lower bounds; it does not hold if it does not of the upper ones. If neither is so,
    and a number is not known exactly, there is no verdict.

    Args:
        claim: As in :func:`judge`.
        statement: As in :func:`judge`.
        effect: One number per seed, above zero where the statement is true of that seed.
        about: As in :func:`judge`.

    Returns:
        The verdict; what it is about says so if its numbers are bounds.
    """
    unknown = int((effect.low != effect.high).sum())
    if not unknown:
        return judge(claim, statement, effect.low, about=about)
    sides: Sequence[tuple[Values, str, str]] = (
        (effect.low, "holds", "lower"),
        (effect.high, "does not hold", "upper"),
    )
    for values, decided, side in sides:
        verdict = judge(claim, statement, values, about=about)
        if verdict.verdict == decided:
            note = f"{about} ({side} bound: {unknown} of {len(values)} seeds not finished)"
            return replace(verdict, about=note)
    return judge(
        claim, statement, np.where(effect.low == effect.high, effect.low, np.nan), about=about
    )
