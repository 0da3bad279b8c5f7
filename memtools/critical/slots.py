"""The examples that are being searched: a full batch as long as there are any left."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Slots"]

Arrive = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Start, lowest and highest points for the examples with the given numbers."""


class Slots:
    """A batch of points that examples leave when they are done, and others enter in their place.

    The place of an example that leaves goes to the last of the batch, so that few rows are copied,
    and examples that wait enter at the end, so that every pass through the model is as full as can
    be. The attributes are views of memory that is taken once.

    Attributes:
        rows: Numbers of the examples in the batch, ``(m,)``.
        points: Where their searches have got to, ``(m, ...)``.
        low: Lowest points of their boxes.
        high: Highest points of their boxes.
        steps: Steps that were made from the start, ``(m,)``.
        slopes: Gradients that are kept from the start, if that was asked for.
    """

    def __init__(
        self,
        waiting: Tensor,
        like: Tensor,
        capacity: int,
        arrive: Arrive,
        *,
        keeps_slope: bool,
    ) -> None:
        size = min(capacity, len(waiting))
        self._waiting = waiting
        self._arrive = arrive
        self._rows = waiting.new_empty(size)
        self._steps = waiting.new_empty(size)
        self._points, self._low, self._high = (
            like.new_empty((size, *like.shape[1:])) for _ in range(3)
        )
        self._slopes = torch.empty_like(self._points) if keeps_slope else None
        self._use(0)
        self.fill()

    def __len__(self) -> int:
        return len(self.rows)

    def leave(self, done: Tensor, *beside: Tensor) -> None:
        """Take examples out of the batch.

        Args:
            done: Which of them, ``(m,)`` bool.
            beside: Tensors with a row for each place, which are sorted alike; what belongs to the
                remaining examples comes first.
        """
        free = done.nonzero().flatten()
        left = len(self) - len(free)
        gaps, beyond = free[free < left], free[free >= left]
        if len(gaps):
            stays = torch.ones(len(free), dtype=torch.bool, device=free.device)
            stays[beyond - left] = False
            movers = stays.nonzero().flatten() + left
            own = (self._rows, self._steps, self._points, self._low, self._high, self._slopes)
            for buffer in (*own, *beside):
                if buffer is not None:
                    buffer[gaps] = buffer[movers]
        self._use(left)

    def fill(self) -> None:
        """Let examples that wait enter, as many as there is room for."""
        begin, end = len(self), min(len(self) + len(self._waiting), len(self._rows))
        if begin == end:
            return
        places = slice(begin, end)
        rows, self._waiting = self._waiting[: end - begin], self._waiting[end - begin :]
        self._rows[places] = rows
        self._steps[places] = 0
        self._points[places], self._low[places], self._high[places] = self._arrive(rows)
        self._use(end)

    def _use(self, size: int) -> None:
        self.rows, self.steps = self._rows[:size], self._steps[:size]
        self.points, self.low, self.high = self._points[:size], self._low[:size], self._high[:size]
        self.slopes = None if self._slopes is None else self._slopes[:size]
