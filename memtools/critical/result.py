"""What a search for critical samples comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import exp, lgamma, log, log1p, nan
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

__all__ = ["NEVER", "CriticalSearch", "Screening"]

NEVER = -1


@dataclass(frozen=True)
class Screening:
    """How often leaving out examples far from any boundary has cost a critical one.

    Attributes:
        left_out: Examples that no class could reach by its slope, most of them not searched.
        audited: Those of them that were searched all the same, chosen at random.
        missed: Those of the audited that turned out to be critical, and are reported as such.
    """

    left_out: int
    audited: int
    missed: int

    @property
    def miss_rate(self) -> float:
        """Estimated share of the critical among the examples left out; NaN if none was audited."""
        return self.missed / self.audited if self.audited else nan

    @property
    def highest_miss_rate(self) -> float:
        """Upper end of the one-sided 95% interval of Clopper and Pearson; 1 if none was audited."""
        n, missed = self.audited, self.missed
        if missed == n:
            return 1.0
        low, high = missed / n, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            likely = sum(_binomial(k, n, middle) for k in range(missed + 1))
            low, high = (middle, high) if likely > 0.05 else (low, middle)
        return high


def _binomial(k: int, n: int, p: float) -> float:
    ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return exp(ways + k * log(p) + (n - k) * log1p(-p))


@dataclass(frozen=True, repr=False)
class CriticalSearch:
    """What a search for critical samples found. It is a lower bound: a search can miss a flip.

    Attributes:
        is_critical: Whether a point of another predicted class was found, ``(n,)`` bool.
        points: That point for a critical example, the example itself for the others,
            ``(n, ...)``.
        predicted: The class predicted for the example itself, ``(n,)`` int64.
        first_step: Number of the point of another class among those that were tried for its
            example, from 1; -1 where none was. For LASS that is the step. ``(n,)`` int64.
        evaluations: Forward and backward passes of single examples that the search took.
        max_steps: Points that were tried for an example at most.
        rounding: How much the lead of the other class had to be at least, so that rounding cannot
            explain it, relative to the largest logit of the point or of the examples on which
            rounding was measured, whichever is larger.
        is_complete: Whether the search came to its end before its time limit.
        screening: What leaving out examples has cost, ``None`` if none was left out.
        is_certified: Whether it is proved that the box holds no other class, ``(n,)`` bool;
            ``None`` if that was not asked for.
        uncertified: Why nothing could be proved, ``None`` if the model was no obstacle.
    """

    is_critical: Tensor
    points: Tensor
    predicted: Tensor
    first_step: Tensor
    evaluations: int
    max_steps: int
    rounding: float
    is_complete: bool = True
    screening: Screening | None = None
    is_certified: Tensor | None = None
    uncertified: str | None = None

    def __repr__(self) -> str:
        found, n = int(self.is_critical.sum()), len(self.is_critical)
        state = "" if self.is_complete else ", stopped by its time limit"
        return f"CriticalSearch({found} of {n} critical, {self.evaluations} evaluations{state})"

    @classmethod
    def interleaved(cls, parts: Sequence["CriticalSearch"]) -> "CriticalSearch":
        """The search of which each part holds every ``len(parts)``-th example, in turn."""
        first = parts[0]
        count = sum(len(part.is_critical) for part in parts)

        def whole(name: str) -> Any:
            own = getattr(first, name)
            if own is None:
                return None
            values = own.new_empty((count, *own.shape[1:]))
            for k, part in enumerate(parts):
                values[k :: len(parts)] = getattr(part, name)
            return values

        screenings = [part.screening for part in parts if part.screening is not None]
        counts = [(s.left_out, s.audited, s.missed) for s in screenings]
        return cls(
            *(whole(name) for name in ("is_critical", "points", "predicted", "first_step")),
            evaluations=sum(part.evaluations for part in parts),
            max_steps=first.max_steps,
            rounding=max(part.rounding for part in parts),
            is_complete=all(part.is_complete for part in parts),
            screening=Screening(*map(sum, zip(*counts, strict=True))) if counts else None,
            is_certified=whole("is_certified"),
            uncertified=next((part.uncertified for part in parts if part.uncertified), None),
        )

    def to(self, device: torch.device | str) -> "CriticalSearch":
        """The same with its tensors on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return replace(self, **moved)

    @property
    def ratio(self) -> Tensor:
        """Critical sample ratio, critical / all: a float32 scalar."""
        return self.is_critical.float().mean()

    @property
    def possible_ratio(self) -> Tensor:
        """Share of the examples not proved to be uncritical: the CSR lies in [ratio, this].

        Raises:
            ValueError: If the search was made without ``certify=True``.
        """
        if self.is_certified is None:
            raise ValueError(
                "possible_ratio needs proofs, which were not asked for; pass certify=True to "
                "find_critical"
            )
        return (~self.is_certified).float().mean()

    def ratio_by_step(self) -> Tensor:
        """CSR(k), the ratio found within ``k`` points, for ``k = 0 .. max_steps``: float32."""
        found = torch.bincount(self.first_step[self.is_critical], minlength=self.max_steps + 1)
        return found.cumsum(0) / len(self.is_critical)

    def dataset(self, targets: Tensor | None = None) -> TensorDataset:
        """The critical points with their labels, for instance for adversarial training.

        Args:
            targets: Labels of the examples that were searched, ``(n, ...)``; ``None`` takes the
                classes that were predicted for them.

        Returns:
            A data set of pairs, one per critical example, in their order.

        Raises:
            ValueError: If there is not one label per example.
        """
        targets = self.predicted if targets is None else targets
        if len(targets) != len(self.is_critical):
            raise ValueError(
                f"targets must have one label for each of the {len(self.is_critical)} examples "
                f"that were searched, got {len(targets)}; pass them for critical and other ones"
            )
        chosen = self.is_critical.to(targets.device)
        return TensorDataset(self.points[self.is_critical], targets[chosen])
