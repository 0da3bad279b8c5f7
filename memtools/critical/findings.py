"""What a search knows of each example, and how much more it may try."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools.critical.result import NEVER
from memtools.critical.rounding import Rounding
from memtools.critical.watch import Watch

__all__ = ["Findings", "lead", "weights_of_pair"]


@dataclass
class Findings:
    """What is known of each example so far.

    Attributes:
        predicted: Class of the example itself, -1 before it was seen, ``(n,)``.
        points: Where another class was found, ``(n, ...)``; elsewhere anything.
        first_step: Number of that point among those tried, -1 where there is none, ``(n,)``.
        tried: Points that were tried, ``(n,)``.
        spent: Forward and backward passes, ``(n,)``.
        keys: Numbers of their random streams, ``(n,)``.
        rounding: What rounding can explain.
        most_tried: Points that may be tried for an example.
        most_spent: Passes that may be spent on an example.
        watch: The time limit and the progress bar.
        is_stuck: Examples of which a search came to a point with too little reach, ``(n,)`` bool.
        given_up: Examples whose search is over with nothing found.
    """

    predicted: Tensor
    points: Tensor
    first_step: Tensor
    tried: Tensor
    spent: Tensor
    keys: Tensor
    rounding: Rounding
    most_tried: int
    most_spent: int
    watch: Watch
    is_stuck: Tensor
    given_up: int = 0

    @property
    def is_found(self) -> Tensor:
        """Which examples are critical, ``(n,)`` bool."""
        return self.first_step != NEVER

    def judge(
        self, logits: Tensor, points: Tensor, rows: Tensor, is_start: Tensor | None = None
    ) -> Tensor:
        """Count points as tried, note those of another class, and say which these are.

        Args:
            logits: At the points, ``(m, C)``.
            points: Of the examples with the numbers ``rows``.
            rows: ``(m,)``.
            is_start: Which points are the examples themselves, and none that is tried.

        Returns:
            bool of shape ``(m,)``.
        """
        self.tried[rows] += 1 if is_start is None else ~is_start
        is_other = ~self.rounding.explains(lead(logits, self.predicted[rows])[0], logits)
        found = is_other.nonzero().flatten()
        self.points[rows[found]] = points[found]
        self.first_step[rows[found]] = self.tried[rows[found]]
        return is_other

    def is_exhausted(self, rows: Tensor) -> Tensor:
        """Whether nothing more may be tried for these examples, ``(m,)`` bool."""
        # The next point takes a forward and a backward pass, a critical one a last look.
        return (self.tried[rows] >= self.most_tried) | (self.spent[rows] + 3 > self.most_spent)

    def look(self, active: int) -> None:
        """Tell the watch how far the search is.

        Args:
            active: Examples in the batch.
        """
        self.watch.look(active, lambda: int(self.is_found.sum()), self.given_up)


def lead(logits: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the best other class is ahead of a class, ``(m,)``, and which it is, ``(m,)``."""
    own = logits.gather(1, predicted[:, None])
    others = logits.scatter(1, predicted[:, None], -torch.inf)
    best, which = others.max(1)
    return best - own.squeeze(1), which


def weights_of_pair(logits: Tensor, predicted: Tensor, other: Tensor) -> Tensor:
    """Weights of the logits in ``other - predicted``, ``(m, C)``."""
    weights = torch.zeros_like(logits).scatter_(1, predicted[:, None], -1.0)
    return weights.scatter_(1, other[:, None], 1.0)
