"""What goes on beside a search: its time limit and its progress bar."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memtools.extras import require

__all__ = ["Watch"]


class Watch:
    """Looks at the clock and moves the bar, once per pass through the model.

    Attributes:
        is_over: Whether the time limit has passed.
    """

    def __init__(self, time_limit: float | None, show: Callable[..., Any] | None) -> None:
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._show = show
        self.is_over = False

    @classmethod
    @contextmanager
    def over(cls, total: int, time_limit: float | None, progress: bool) -> Iterator["Watch"]:
        """A watch over the search of so many examples, with a bar on stderr if it is wanted."""
        if not progress:
            yield cls(time_limit, None)
            return
        console = require("rich.console").Console(stderr=True)
        rich = require("rich.progress")
        columns = (
            rich.TextColumn("critical samples"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[active]} active, {task.fields[found]} found"),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total, active=0, found=0)
            yield cls(time_limit, lambda **fields: bar.update(task, **fields))

    def look(self, settled: Callable[[], int], active: int, found: Callable[[], int]) -> None:
        """After a pass.

        Args:
            settled: Counts the examples whose search is over.
            active: Examples in the batch.
            found: Counts the critical ones so far.
        """
        if self._end is not None and time.monotonic() >= self._end:
            self.is_over = True
        if self._show is not None:
            self._show(completed=settled(), active=active, found=found())
