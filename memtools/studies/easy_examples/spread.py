"""How far shares of networks are from what independent draws would give."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools import seeds

__all__ = ["LEVEL", "binomial_range", "over_dispersion", "spread_of"]

LEVEL = 0.99
"""Share of the binomial's over-dispersions that lie in :func:`binomial_range`."""

SIMULATIONS = 2000

Shares = NDArray[np.float64]


def over_dispersion(
    shares: Shares, networks: int, groups: NDArray[np.int64] | None = None
) -> float:
    r"""Variance of shares over that of a binomial: 1 if all examples are equally hard.

    .. math:: OD = \frac{\frac1n \sum_i (p_i - \bar p)^2}{\bar p (1 - \bar p) / R}

    Args:
        shares: Share of the networks that get an example right, shape ``(n,)``.
        networks: Number of networks R.
        groups: Class numbers: the mean is that of the class then, and the number of classes is
            taken off the degrees of freedom; ``None`` has one mean for all.

    Returns:
        The ratio; NaN where no network, or every network, is right on every example.
    """
    groups = np.zeros(len(shares), np.int64) if groups is None else groups
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = (np.bincount(places, shares) / sizes)[places]
    expected = float((means * (1 - means)).sum()) / networks
    # One mean for all is the paper's ratio; with many, each takes away a degree of freedom.
    expected *= (len(shares) - (len(sizes) - 1)) / len(shares)
    found = float(((shares - means) ** 2).sum())
    return found / expected if expected > 0 else float("nan")


def binomial_range(mean: float, n: int, networks: int, seed: int) -> tuple[float, float]:
    """Where :data:`LEVEL` of the over-dispersions of ``n`` independent binomial draws lie.

    Args:
        mean: Probability of each draw.
        n: Number of examples.
        networks: Number of networks.
        seed: Fixes the simulated draws.

    Returns:
        Lower and upper end.
    """
    draw = np.random.default_rng(seeds.derive_seed(seed, "binomial"))
    shares = draw.binomial(networks, mean, (SIMULATIONS, n)) / networks
    means = shares.mean(1)
    expected = means * (1 - means) / networks
    # Draws that all came out the same do not vary at all.
    found = np.divide(shares.var(1), expected, out=np.zeros_like(means), where=expected > 0)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spread_of(
    shares: Shares, labels: NDArray[np.int64], networks: int, seed: int
) -> dict[str, Any]:
    """What a line of the study says about the shares of one set of networks."""
    mean = float(shares.mean())
    defined = 0 < mean < 1
    low, high = binomial_range(mean, len(shares), networks, seed) if defined else (None, None)
    within = over_dispersion(shares, networks, labels)
    return {
        "mean_share_right": mean,
        "over_dispersion": over_dispersion(shares, networks) if defined else None,
        "over_dispersion_within_classes": within if np.isfinite(within) else None,
        "binomial_low": low,
        "binomial_high": high,
        "always_right": float((shares == 1).mean()),
        "never_right": float((shares == 0).mean()),
        "unanimous_by_chance": mean**networks + (1 - mean) ** networks,
    }
