"""Which examples to keep: by a score, a share, a class, or a spread over all degrees of hardness.

Every function gives indices in ascending order, as :class:`torch.utils.data.Subset` takes them, and
draws nothing at random but where it takes a generator.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["coverage", "drop", "keep", "window"]


def keep(
    scores: Any,
    share: float | None = None,
    *,
    threshold: float | None = None,
    hardest: bool = True,
    targets: Any = None,
) -> Tensor:
    """The examples of highest score.

    Args:
        scores: Shape ``(n,)``; examples whose score is NaN come last.
        share: How many to keep, as a share from 0 to 1 (rounded to a whole number of examples).
        threshold: In place of a share: keep what scores at least this much, or at most with
            ``hardest=False``; NaN does not.
        hardest: Whether to keep high scores; ``False`` keeps low ones.
        targets: Class numbers, ``(n,)``: the share is kept of each class. ``None`` keeps it of all.

    Returns:
        Indices, ``(k,)`` int64, ascending; of equal scores, the lower index.

    Raises:
        ValueError: If not just one of ``share`` and ``threshold`` is given, ``share`` lies outside
            0 to 1, or the lengths differ.

    Example:
        >>> keep([0.1, 0.9, 0.5, 0.7], 0.5)
        tensor([1, 3])
    """
    values = _checked(scores)
    if (share is None) == (threshold is None):
        raise ValueError(
            f"one of share and threshold must be given, got share={share}, threshold={threshold}"
        )
    if threshold is not None:
        if targets is not None:
            raise ValueError("targets must be None with a threshold, which is the same everywhere")
        kept = values >= threshold if hardest else values <= threshold
        return kept.nonzero()[:, 0]
    share = _checked_share("share", share)
    order = _order(values, hardest)
    return _of_each(order, targets, lambda part: part[: round(share * len(part))])


def drop(
    scores: Any,
    share: float | None = None,
    *,
    threshold: float | None = None,
    hardest: bool = True,
    targets: Any = None,
) -> Tensor:
    """All but the examples of highest score: the complement of :func:`keep`.

    Args:
        scores: Shape ``(n,)``; examples whose score is NaN are the last to be dropped.
        share: How many to drop, as a share from 0 to 1.
        threshold: In place of a share: drop what scores at least this much, or at most with
            ``hardest=False``.
        hardest: Whether to drop high scores; ``False`` drops low ones.
        targets: Class numbers, ``(n,)``: the share is dropped of each class.

    Returns:
        Indices of what is left, ``(k,)`` int64, ascending.

    Raises:
        ValueError: As :func:`keep`.

    Example:
        >>> drop([0.1, 0.9, 0.5, 0.7], 0.25)
        tensor([0, 2, 3])
    """
    dropped = keep(scores, share, threshold=threshold, hardest=hardest, targets=targets)
    is_left = torch.ones(len(_checked(scores)), dtype=torch.bool)
    is_left[dropped] = False
    return is_left.nonzero()[:, 0]


def window(scores: Any, begin: float, end: float, *, targets: Any = None) -> Tensor:
    """The examples between two quantiles of the score, from the easiest at 0 to the hardest at 1.

    Args:
        scores: Shape ``(n,)``; examples whose score is NaN count as the easiest.
        begin: Where the window begins, from 0 to 1.
        end: Where it ends, not before it begins.
        targets: Class numbers, ``(n,)``: the quantiles are those of each class.

    Returns:
        Indices, ``(k,)`` int64, ascending. Windows that meet share no example.

    Raises:
        ValueError: If the quantiles are out of order or range, or the lengths differ.

    Example:
        >>> window([0.1, 0.9, 0.5, 0.7], 0.25, 0.75)
        tensor([2, 3])
    """
    begin, end = _checked_share("begin", begin), _checked_share("end", end)
    if begin > end:
        raise ValueError(f"begin must not lie after end, got {begin} and {end}")
    order = _order(_checked(scores), hardest=True).flip(0)
    return _of_each(
        order, targets, lambda part: part[round(begin * len(part)) : round(end * len(part))]
    )


def coverage(
    scores: Any,
    share: float,
    *,
    drop_hardest: float = 0.0,
    strata: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Examples drawn evenly from all degrees of hardness (coverage-centric selection).

    The hardest are dropped, which are often mislabelled; the rest is cut into strata of equal width
    in the score, and the budget is shared out among them, from the smallest stratum to the largest,
    what a small one cannot use going to the others (Zheng et al. 2023, algorithm 1).

    Args:
        scores: Shape ``(n,)``, finite.
        share: How many to keep of all n, from 0 to ``1 - drop_hardest``.
        drop_hardest: Share of all n that is dropped beforehand.
        strata: Number of strata.
        generator: Draws within a stratum; ``None`` is a new one with seed 0.

    Returns:
        Indices, ``(k,)`` int64, ascending.

    Raises:
        ValueError: If a score is not finite, a share does not fit, or ``strata`` is not positive.

    Example:
        >>> len(coverage(torch.rand(1000), 0.3, drop_hardest=0.1))
        300
    """
    values = _checked(scores)
    share, beyond = _checked_share("share", share), _checked_share("drop_hardest", drop_hardest)
    if not bool(values.isfinite().all()):
        raise ValueError("scores must be finite, got NaN or infinity; leave those examples out")
    if strata < 1:
        raise ValueError(f"strata must be at least 1, got {strata}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    left = drop(values, beyond)
    budget = round(share * len(values))
    if budget > len(left):
        raise ValueError(
            f"share must leave room for drop_hardest, got {share} and {beyond} of {len(values)}"
        )
    if budget == 0:
        return left[:0]
    low, high = values[left].aminmax()
    width = (high - low) / strata if high > low else torch.ones(())
    places = ((values[left] - low) / width).long().clamp_max(strata - 1)
    groups = [left[places == place] for place in places.unique()]
    chosen = []
    for number, group in enumerate(sorted(groups, key=len)):
        take = min(len(group), budget // (len(groups) - number))
        chosen.append(group[torch.randperm(len(group), generator=generator)[:take]])
        budget -= take
    return torch.cat(chosen).sort().values


def _order(values: Tensor, hardest: bool) -> Tensor:
    """Positions from the first to be kept to the last; NaN last, equal ones by index."""
    return (-values if hardest else values).argsort(stable=True)


def _of_each(order: Tensor, targets: Any, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """What is chosen of an order, or of the order of each class, ascending."""
    if targets is None:
        return choose(order).sort().values
    targets = torch.as_tensor(targets).cpu()
    if targets.shape != order.shape:
        raise ValueError(
            f"targets must have one entry for each of the {len(order)} scores, got shape "
            f"{tuple(targets.shape)}"
        )
    ranked = targets[order]
    parts = [choose(order[ranked == label]) for label in targets.unique()]
    return torch.cat([order[:0], *parts]).sort().values


def _checked(scores: Any) -> Tensor:
    values = torch.as_tensor(scores).detach().cpu()
    if values.ndim != 1 or values.is_complex():
        raise ValueError(
            f"scores must be real numbers of shape (n,), got {values.dtype} of shape "
            f"{tuple(values.shape)}"
        )
    return values.double()


def _checked_share(name: str, share: Any) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {share}")
    return float(share)
