"""Claims of Arpit et al. (2017) as checks: an effect, an interval over seeds, a verdict."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL

__all__ = [
    "CLAIMS",
    "Values",
    "Verdict",
    "class_claims",
    "diagonal_contrast",
    "gini_claims",
    "judge",
    "off_diagonal",
]

CONFIDENCE = 0.95

CLAIMS = {
    "C1": "Networks agree on which real examples are easy and hard, much less on noise.",
    "C2": "Loss sensitivity is spread more unequally over real examples than over noise.",
    "C3": "The loss of a class depends most on its own examples; on real data, on others too.",
    "C4": "The more of the data is noise, the wider a network has to be to do its best.",
    "C5": "On noise, time to fit grows faster with the data and falls more with the width.",
    "C6": "The more noise is learnt, the more examples have a decision boundary close by.",
    "C7": "With random labels, held-out accuracy is best before they are learnt, then falls.",
    "C8": "Dropout keeps a network from memorising noise at the least cost on real data.",
    "C9": "Does throwing out the examples of high sensitivity improve generalisation?",
    "C10": "With dropout, a network forgets less of an earlier task.",
    "ours": "What the paper does not claim.",
}
"""Claims of the paper, and the question it leaves open (C9), in a sentence each."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What the numbers of a study say about a claim.

    Attributes:
        claim: Which claim of the paper it is about; ``"ours"`` where the paper makes none.
        statement: What would have to be true, with the number that is above zero if it is.
        verdict: ``"holds"`` if the whole interval is above zero, ``"does not hold"`` if all of it
            is below, ``"undecided"`` otherwise.
        effect: Mean of the number over the seeds; ``None`` if it is not defined for one of them.
        low: Lower end of the 95% Student-t interval of that mean; ``None`` without one.
        high: Its upper end.
        n: Number of seeds for which the number is defined.
        about: What it is about where the same is stated of several things.
    """

    claim: str
    statement: str
    verdict: Literal["holds", "does not hold", "undecided"]
    effect: float | None
    low: float | None
    high: float | None
    n: int
    about: str = ""


def judge(
    claim: str, statement: str, effects: Sequence[float] | Values, *, about: str = ""
) -> Verdict:
    r"""A verdict from one number per seed, by the interval :math:`\bar e \pm t_{n-1} s / \sqrt n`.

    Args:
        claim: As in :class:`Verdict`.
        statement: As in :class:`Verdict`.
        effects: One number per seed, above zero where the statement is true of that seed; paired
            differences, for instance. Where one is NaN or infinite, there is no verdict.
        about: As in :class:`Verdict`.

    Returns:
        The verdict; undecided and without an interval for fewer than two seeds.

    Raises:
        ValueError: If there is no seed.

    Example:
        >>> judge("C2", "more", [1.0, 2.0, 3.0]).verdict
        'undecided'
        >>> judge("C2", "more", [2.0, 2.1, 2.2]).verdict
        'holds'
    """
    values = np.asarray(effects, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"effects must be one number per seed, got shape {values.shape}")
    defined = np.isfinite(values)
    n = int(defined.sum())
    if n < len(values):
        return Verdict(claim, statement, "undecided", None, None, None, n, about)
    effect = float(values.mean())
    if n < 2:
        return Verdict(claim, statement, "undecided", effect, None, None, n, about)
    quantile = float(require("scipy.stats").t.ppf((1 + CONFIDENCE) / 2, n - 1))
    reach = quantile * float(values.std(ddof=1)) / math.sqrt(n)
    low, high = effect - reach, effect + reach
    verdict = "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
    return Verdict(claim, statement, verdict, effect, low, high, n, about)


def gini_claims(ginis: Mapping[str, Mapping[str, Values]]) -> Iterator[Verdict]:
    """C2: the sensitivity is spread more unequally over real data than over noise.

    Args:
        ginis: Gini coefficient of the mean sensitivity by task (``"classes"``, ``"own-class"``)
            and key of the condition, one value per seed.

    Yields:
        A verdict for each task and kind of noise.
    """
    difference = "difference of Gini coefficients"
    for claim, task, where, noise in (
        ("C2", "classes", "usual classes", RANDOM_INPUTS),
        ("C2", "own-class", "every example its own class", RANDOM_INPUTS),
        ("ours", "classes", "usual classes", RANDOM_LABELS),
    ):
        yield judge(
            claim,
            f"more unequal on real data than with {noise.title}, {where} ({difference})",
            ginis[task][REAL.key] - ginis[task][noise.key],
        )


def class_claims(matrices: Mapping[str, Values]) -> Iterator[Verdict]:
    """C3: a class depends most on its own examples; on real data, more on others than on noise.

    Args:
        matrices: Per-class sensitivity by key of the condition, shape ``(seeds, C, C)``.

    Yields:
        A verdict for the diagonal of each condition, and for real data against each noise.
    """
    for condition in (REAL, RANDOM_LABELS, RANDOM_INPUTS):
        yield judge(
            "C3",
            f"diagonal above off-diagonal, {condition.title} (mean log ratio)",
            [diagonal_contrast(matrix) for matrix in matrices[condition.key]],
        )
    shares = {key: [off_diagonal(m) for m in of_seeds] for key, of_seeds in matrices.items()}
    for noise in (RANDOM_INPUTS, RANDOM_LABELS):
        yield judge(
            "C3",
            f"more off the diagonal on real data than with {noise.title} "
            "(difference of off-diagonal over diagonal)",
            np.subtract(shares[REAL.key], shares[noise.key]),
        )


def diagonal_contrast(matrix: Any) -> float:
    """Mean natural logarithm of the diagonal less that of the other entries.

    Classes without examples are left out. NaN where that leaves fewer than two, or an entry that
    is not a positive number.
    """
    diagonal, others = _parts(matrix)
    if not (diagonal > 0).all() or not (others > 0).all():
        return math.nan
    return float(np.log(diagonal).mean() - np.log(others).mean())


def off_diagonal(matrix: Any) -> float:
    """Mean of the entries off the diagonal over the mean of the diagonal; NaN as above.

    Zeros are no obstacle here, as long as the diagonal is not all zero.
    """
    diagonal, others = _parts(matrix)
    if not diagonal.sum() > 0:
        return math.nan
    return float(others.mean() / diagonal.mean())


def _parts(matrix: Any) -> tuple[Values, Values]:
    """The diagonal and the other entries, among the classes that have examples."""
    matrix = np.asarray(matrix, dtype=np.float64)
    # A class without examples has a column of NaN, and no other column has one in its place.
    present = ~np.isnan(matrix).all(0)
    matrix = matrix[np.ix_(present, present)]
    if len(matrix) < 2 or not np.isfinite(matrix).all() or (matrix < 0).any():
        nothing = np.array([math.nan])
        return nothing, nothing
    own = np.eye(len(matrix), dtype=bool)
    return matrix[own], matrix[~own]
