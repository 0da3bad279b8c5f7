"""The examples that are being searched: a full batch as long as there are any left."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Slots"]

Arrive = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Start, lowest and highest points for the examples with the given numbers."""


class Slots:
    """A batch of points that examples leave when they are done, and others enter in their place.

    An example that leaves is replaced by one that waits, or by the last of the batch, so that few
    rows are copied, and every pass through the model is as full as can be. The attributes are views
    of memory that is taken once.

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
        self._enter(torch.arange(size, device=waiting.device))
        self._use(size)

    def __len__(self) -> int:
        return len(self.rows)

    def leave(self, done: Tensor) -> None:
        """Free the places of examples that are done, ``(m,)`` bool, and fill them again."""
        free = done.nonzero().flatten()
        entering = min(len(free), len(self._waiting))
        self._enter(free[:entering])
        free = free[entering:]
        if len(free) == 0:
            return
        # The last of those that stay move into the gaps before them.
        left = len(self) - len(free)
        gaps = free[free < left]
        stays = torch.ones(len(free), dtype=torch.bool, device=free.device)
        stays[free[free >= left] - left] = False
        movers = stays.nonzero().flatten() + left
        buffers = (self._rows, self._steps, self._points, self._low, self._high, self._slopes)
        for buffer in buffers:
            if buffer is not None:
                buffer[gaps] = buffer[movers]
        self._use(left)

    def _use(self, size: int) -> None:
        self.rows, self.steps = self._rows[:size], self._steps[:size]
        self.points, self.low, self.high = self._points[:size], self._low[:size], self._high[:size]
        self.slopes = None if self._slopes is None else self._slopes[:size]

    def _enter(self, places: Tensor) -> None:
        if len(places) == 0:
            return
        rows, self._waiting = self._waiting[: len(places)], self._waiting[len(places) :]
        self._rows[places] = rows
        self._steps[places] = 0
        self._points[places], self._low[places], self._high[places] = self._arrive(rows)
