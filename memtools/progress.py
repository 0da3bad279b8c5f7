"""A progress bar on stderr that draws no random numbers from the global generators."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memtools.extras import require

__all__ = ["progress_bar"]

INTERVAL = 0.1
"""Seconds between two looks of the bar."""


@contextmanager
def progress_bar(
    wanted: bool, title: str, total: int, note: str = ""
) -> Iterator[Callable[..., Any]]:
    """Show how far something is, for a block.

    Args:
        wanted: Whether to show anything.
        title: What goes on.
        total: At which count it is done.
        note: More to be shown, with fields in braces.

    Yields:
        ``update(completed, **fields)``, to be called as often as one likes, with the count so far
        and the fields of ``note``. Each may be a function that gives it, which is called only when
        the bar is drawn: ten times a second, and once more at the end.
    """
    if not wanted:
        yield lambda completed, **fields: None
        return
    with _own_random_state():
        console = require("rich.console").Console(stderr=True)
        rich = require("rich.progress")
        columns = [rich.TextColumn(title), rich.BarColumn(), rich.MofNCompleteColumn()]
        columns += [rich.TextColumn("{task.fields[note]}"), rich.TimeRemainingColumn()]
        # A thread that refreshed the bar would draw random numbers while the model is called.
        bar = rich.Progress(*columns, console=console, auto_refresh=False)
        bar.start()
        task = bar.add_task("", total=total, note="")
    shown = 0.0
    last: dict[str, Any] = {"completed": 0}

    def draw() -> None:
        values = {name: v() if callable(v) else v for name, v in last.items()}
        completed = values.pop("completed")
        with _own_random_state():
            bar.update(task, completed=completed, note=note.format(**values), refresh=True)

    def update(completed: Any, **fields: Any) -> None:
        nonlocal shown, last
        last = {"completed": completed, **fields}
        if time.monotonic() > shown + INTERVAL:
            shown = time.monotonic()
            draw()

    try:
        yield update
        if len(last) > 1 or not note:
            draw()
    finally:
        with _own_random_state():
            bar.stop()


@contextmanager
def _own_random_state() -> Iterator[None]:
    # Rich numbers its styles by Python's global generator.
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
