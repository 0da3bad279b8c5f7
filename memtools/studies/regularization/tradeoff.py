"""How much memorisation a regulariser leaves at a common accuracy on real data.

A regulariser has a curve: from no regularisation through its strengths, weak to strong, each a
point of accuracy on real data and training accuracy on random labels. Between neighbouring points
the curve is taken to be straight, so that a regulariser that happens to have a strength just at the
common accuracy has no advantage. The place on it is where the *other* seeds, by their means, have
learnt the least of the random labels without losing more accuracy than is tolerated; there this
seed is looked at. Chosen on the seed itself, it would be where luck was good, and the more so the
more strengths there are. (With one seed there is no other way.)
"""

from dataclasses import dataclass

import numpy as np

from memtools.studies.claims import Values

__all__ = ["Curve", "Left", "lowest_place", "memorization_left"]


@dataclass(frozen=True)
class Curve:
    """What a regulariser does, by strength.

    Attributes:
        strengths: From 0, no regularisation, to the strongest, shape ``(k,)``.
        real: Held-out accuracy of networks trained on real labels, ``(seeds, k)``.
        random: Training accuracy of networks trained on random labels, ``(seeds, k)``.
    """

    strengths: Values
    real: Values
    random: Values


@dataclass(frozen=True)
class Left:
    """What a regulariser comes to at the common accuracy, one number per seed.

    Attributes:
        places: Where on the curve, 0 for its first point to ``k - 1`` for its last.
        random: Training accuracy on random labels there: the memorisation that is left.
        real: Held-out accuracy on real data there, by the seed that did not choose the place.
    """

    places: Values
    random: Values
    real: Values


def lowest_place(real: Values, random: Values, least: float) -> float:
    """Where a curve is lowest in training accuracy on random labels without losing too much.

    Args:
        real: Held-out accuracy at its points, ``(k,)``.
        random: Training accuracy on random labels, ``(k,)``.
        least: Held-out accuracy that is enough; the first point of the curve has it.

    Returns:
        A point's number, or a place between two; the weakest of equals.

    Example:
        >>> import numpy as np
        >>> lowest_place(np.array([0.75, 0.75, 0.25]), np.array([1.0, 0.8, 0.4]), 0.5)
        1.5
    """
    places = [float(i) for i in np.flatnonzero(real >= least)]
    for i in range(len(real) - 1):
        if (real[i] - least) * (real[i + 1] - least) < 0:
            places.append(float(i + (real[i] - least) / (real[i] - real[i + 1])))
    return min(sorted(places), key=lambda place: _at(random, place))


def memorization_left(curve: Curve, tolerance: float) -> Left:
    """What a regulariser leaves of memorisation for a price in accuracy.

    Args:
        curve: All its strengths.
        tolerance: How much accuracy may be lost to that at the beginning of the curve.

    Returns:
        One number per seed.
    """
    seeds = len(curve.real)
    places = []
    for seed in range(seeds):
        others = [s for s in range(seeds) if s != seed] or [seed]
        real, random = curve.real[others].mean(0), curve.random[others].mean(0)
        places.append(lowest_place(real, random, real[0] - tolerance))
    return Left(
        np.array(places),
        np.array([_at(of_seed, p) for of_seed, p in zip(curve.random, places, strict=True)]),
        np.array([_at(of_seed, p) for of_seed, p in zip(curve.real, places, strict=True)]),
    )


def _at(values: Values, place: float) -> float:
    return float(np.interp(place, np.arange(len(values)), values))
