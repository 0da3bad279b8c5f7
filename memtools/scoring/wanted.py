"""Which scores are wanted, and what they are to be computed with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtools.critical.box import Bounds

__all__ = ["CRITICAL", "GRADIENTS", "LOGITS", "SCORES", "Wanted"]

LOGITS = ("prediction", "loss", "confidence", "el2n", "margin", "correct", "entropy")
"""Scores that the logits alone give."""

GRADIENTS = ("input_gradient_norm", "parameter_gradient_norm")
"""Scores that take a backward pass."""

CRITICAL = "is_critical"
"""The score that takes a search, and a radius."""

SCORES = (*LOGITS, *GRADIENTS, CRITICAL)
"""All scores, in the order of the columns."""


@dataclass(frozen=True)
class Wanted:
    """Scores to be computed.

    Attributes:
        scores: Their names, in the order of ``SCORES``.
        radius: Of :func:`memtools.find_critical`; ``None`` for no search. A tensor as nested lists.
        method: Of the search, ``"lass"`` or ``"auto"``.
        bounds: Of the search.
        embedding: For integer inputs, the name of the module that looks them up.
    """

    scores: tuple[str, ...]
    radius: Any = None
    method: str = "lass"
    bounds: Any = None
    embedding: str | None = None

    @classmethod
    def of(
        cls,
        scores: Iterable[str] | None = None,
        radius: float | Tensor | None = None,
        method: str = "lass",
        bounds: Bounds | None = None,
        embedding: str | None = None,
    ) -> "Wanted":
        """What was asked for, checked; see :func:`memtools.scoring.score`.

        Raises:
            TypeError: If ``scores`` is a single word.
            ValueError: If a score is unknown or none is asked for, or the search is asked for
                without a radius, or its arguments are out of range.
        """
        if isinstance(scores, str):
            raise TypeError(f"scores must be several names, got {scores!r}; pass [{scores!r}]")
        names = set((*LOGITS, *GRADIENTS) if scores is None else scores)
        if unknown := sorted(names - set(SCORES)):
            raise ValueError(f"scores must be of {', '.join(SCORES)}; got {', '.join(unknown)}")
        if radius is not None:
            names.add(CRITICAL)
        elif CRITICAL in names:
            raise ValueError(
                "scores holds is_critical, but radius is missing; give the half-width of the box "
                "in the units of the inputs"
            )
        if not names:
            raise ValueError(f"scores is empty; name at least one of {', '.join(SCORES)}")
        if method not in ("lass", "auto"):
            raise ValueError(f'method must be "lass" or "auto", got {method!r}')
        if bounds is not None and len(bounds) != 2:
            raise ValueError(
                f"bounds must be the smallest and the largest input, got {len(bounds)} values; "
                "pass for instance (0, 1)"
            )
        width = None if radius is None else _plain(radius)
        if width is not None and not bool((torch.as_tensor(width) > 0).all()):
            raise ValueError(f"radius must be positive, got {width}")
        return cls(
            tuple(name for name in SCORES if name in names),
            width,
            method,
            None if bounds is None else [_plain(bound) for bound in bounds],
            embedding,
        )


def _plain(value: float | Tensor | list[Any]) -> Any:
    """A number or nested lists of numbers, which JSON keeps to the last bit."""
    return torch.as_tensor(value, dtype=torch.float64).tolist()
