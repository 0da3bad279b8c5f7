"""The numbers of the study of capacity: accuracies, and the smallest width that suffices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.studies.capacity.config import Config
from memtools.studies.capacity.experiment import NOISE, REMOVED
from memtools.studies.summary import Curves

__all__ = ["KINDS", "Outcomes", "outcomes_of", "slope", "smallest_sufficient"]

KINDS = (*NOISE, REMOVED)


@dataclass(frozen=True)
class Outcomes:
    """All networks of the study.

    Attributes:
        config: The settings; ``config.widths`` and ``config.levels`` are the axes below.
        best: Best accuracy on the held-out examples over the epochs by kind of noise, each of
            shape ``(seeds, levels, widths)``; the first level is without noise in all of them.
        last: The same after the last epoch.
        fitted: Accuracy on the training examples after the last epoch.
    """

    config: Config
    best: Mapping[str, Curves]
    last: Mapping[str, Curves]
    fitted: Mapping[str, Curves]

    def places(self, kind: str, tolerance: float | None = None) -> NDArray[np.int64]:
        """Smallest sufficient width as its place among the widths, shape ``(seeds, levels)``."""
        tolerance = self.config.tolerance if tolerance is None else tolerance
        return smallest_sufficient(self.best[kind], tolerance)

    def sufficient(self, kind: str) -> Curves:
        """Smallest sufficient width, shape ``(seeds, levels)``."""
        return np.array(self.config.widths, np.float64)[self.places(kind)]

    def slopes(self, kind: str, tolerance: float | None = None) -> Curves:
        """Doublings of the smallest sufficient width from no noise to all, one per seed.

        The slope of the straight line with the least squares through log2 of the width against the
        share of noise. Where the narrowest or the widest network is the smallest that suffices,
        the width counts as it is: the true one may be beyond, and the slope steeper. Where
        accuracies scatter by more than the tolerance, the best of all widths is that of a lucky
        one, and the smallest that suffices too wide; as accuracies scatter more with noise,
        :meth:`shortfalls` are to be seen beside it.
        """
        log_widths = np.log2(self.config.widths)[self.places(kind, tolerance)]
        return self._slopes(log_widths)

    def shortfalls(self, kind: str) -> Curves:
        """By how much narrower networks are worse than the widest, shape ``(seeds, levels)``.

        Accuracy of the widest less the mean accuracy of the others. Unlike the smallest sufficient
        width it knows no tolerance, and is not pushed up where accuracies scatter more.
        """
        return self.best[kind][..., -1] - self.best[kind][..., :-1].mean(-1)

    def shortfall_slopes(self, kind: str) -> Curves:
        """How much larger that is with all noise than without, by a straight line, per seed."""
        return self._slopes(self.shortfalls(kind))

    def _slopes(self, values: Curves) -> Curves:
        return np.array([slope(self.config.levels, of_seed) for of_seed in values])


def smallest_sufficient(best: Curves, tolerance: float) -> NDArray[np.int64]:
    """Place of the first width whose accuracy is within a tolerance of the best of all widths.

    Args:
        best: Accuracies of shape ``(..., widths)``, narrow to wide.
        tolerance: How much worse it may be.

    Returns:
        Shape ``(...)``.
    """
    # Accuracies are multiples of 1 / n: what is just within the tolerance must not be lost to
    # rounding.
    is_enough = best >= best.max(-1, keepdims=True) - tolerance - 1e-9
    return is_enough.argmax(-1)


def slope(x: Sequence[float], y: Curves) -> float:
    """Slope of the straight line with the least squares."""
    deviations = np.asarray(x) - np.mean(x)
    return float(deviations @ (y - y.mean()) / (deviations @ deviations))


def outcomes_of(rows: Sequence[dict[str, Any]], config: Config) -> Outcomes:
    """Bring the lines of all networks in order."""
    found = {(row["noise"], row["share"], row["seed"], row["width"]): row for row in rows}

    def values(name: str) -> dict[str, Curves]:
        return {
            kind: np.array(
                [
                    [
                        [
                            found[kind if share else "none", share, seed, width][name]
                            for width in config.widths
                        ]
                        for share in config.levels
                    ]
                    for seed in config.seeds
                ]
            )
            for kind in KINDS
        }

    return Outcomes(
        config,
        values("best_validation_accuracy"),
        values("validation_accuracy"),
        values("train_accuracy"),
    )
