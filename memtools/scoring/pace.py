"""How fast a run is, in lines for people."""

import sys
import time
from collections.abc import Callable

__all__ = ["Pace", "say"]

INTERVAL = 30.0
"""Seconds between two lines at least."""


class Pace:
    """Tells after some chunks how far a process is with its share.

    Args:
        examples: In its share.
        chunks: In its share.
        tell: Takes a line.
        interval: Seconds between two lines at least.
    """

    def __init__(
        self,
        examples: int,
        chunks: int,
        tell: Callable[[str], None],
        interval: float = INTERVAL,
    ) -> None:
        self._examples, self._chunks = examples, chunks
        self._tell, self._interval = tell, interval
        self._done = self._chunks_done = 0
        self._began = self._told = time.monotonic()

    def add(self, examples: int) -> None:
        """A chunk of so many examples is written."""
        self._done += examples
        self._chunks_done += 1
        now = time.monotonic()
        is_last = self._chunks_done == self._chunks
        if not is_last and now < self._told + self._interval:
            return
        self._told = now
        rate = self._done / max(now - self._began, 1e-9)
        left = "" if is_last else f", {_span((self._examples - self._done) / rate)} left"
        self._tell(f"{self._chunks_done} of {self._chunks} chunks, {rate:.3g} examples/s{left}")


def say(who: str, line: str) -> None:
    """Print a line on standard error at once."""
    print(f"memtools: {who}{line}", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
