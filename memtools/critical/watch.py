"""What goes on beside a search: its time limit and its progress bar."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memtools.progress import progress_bar

__all__ = ["Watch"]


class Watch:
    """Looks at the clock and moves the bar, once per pass through the model.

    Attributes:
        is_over: Whether the time limit has passed.
    """

    def __init__(self, time_limit: float | None, update: Callable[..., Any]) -> None:
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._update = update
        self.is_over = False

    @classmethod
    @contextmanager
    def over(cls, total: int, time_limit: float | None, progress: bool) -> Iterator["Watch"]:
        """A watch over the search of so many examples, with a bar on stderr if it is wanted."""
        note = "{active} active, {found} found"
        with progress_bar(progress, "critical samples", total, note) as update:
            yield cls(time_limit, update)

    def look(self, active: int, found: Callable[[], int], given_up: int) -> None:
        """After a pass.

        Args:
            active: Examples in the batch.
            found: Counts the critical ones so far.
            given_up: Examples whose search is over with nothing found.
        """
        if self._end is not None and time.monotonic() >= self._end:
            self.is_over = True
        self._update(lambda: found() + given_up, active=active, found=found)
