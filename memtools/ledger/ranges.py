"""The presentations of a range of examples, brought together from the logs of all processes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from memtools.ledger.log import Log

__all__ = ["Range", "counts", "longest", "ranges"]

_MEMORY = 1 << 26
"""Bytes that a range may take, about."""

_PER_PRESENTATION = 64
"""Bytes that one presentation takes while a range is worked on, about."""

_BLOCK = 1 << 21
"""Rows of a log that are looked at together."""


class Range:
    """What happened to the examples from ``start`` to ``stop - 1``.

    Args:
        logs: Logs of all processes.
        start: The first example.
        stop: One after the last.

    Attributes:
        counts: Number of presentations of each, shape ``(stop - start,)``.
    """

    def __init__(self, logs: Sequence[Log], start: int, stop: int) -> None:
        self._logs, self.start, self.stop = logs, start, stop
        self._rows = [_rows(log, start, stop) for log in logs]
        examples = [
            log.index()[rows].astype(np.int64) - start
            for log, rows in zip(logs, self._rows, strict=True)
        ]
        self._examples = np.concatenate([np.empty(0, np.int64), *examples])
        self.counts: NDArray[np.int64] = np.bincount(self._examples, minlength=stop - start)
        if len(logs) <= 1:
            # PyTorch sorts integers by their digits, four times as fast as NumPy.
            narrow = torch.from_numpy(self._examples.astype(np.int32))
            order = narrow.sort(stable=True).indices.numpy()
        else:
            steps = [_steps(log, rows) for log, rows in zip(logs, self._rows, strict=True)]
            order = np.lexsort((np.concatenate(steps), self._examples))
        firsts = np.cumsum(self.counts) - self.counts
        self._slots = np.empty(len(order), np.int64)
        self._slots[order] = np.arange(len(order)) - firsts[self._examples[order]]

    def history(self, column: str, width: int) -> NDArray[np.float32]:
        """A score at every presentation.

        Args:
            column: Name of the score.
            width: Number of presentations to make room for.

        Returns:
            Shape ``(stop - start, width)``; NaN where there was no presentation, or no score.
        """
        history = np.full((self.stop - self.start, width), np.nan, np.float32)
        begin = 0
        for log, rows in zip(self._logs, self._rows, strict=True):
            own = slice(begin, begin + len(rows))
            places = self._examples[own] * width + self._slots[own]
            history.reshape(-1)[places] = log.column(column, rows)
            begin += len(rows)
        return history


def ranges(logs: Sequence[Log], num_examples: int) -> Iterator[Range]:
    """All examples in order, in ranges that fit the memory."""
    presentations = 1 + sum(log.rows for log in logs) / num_examples
    size = max(1, int(_MEMORY / (_PER_PRESENTATION * presentations)))
    for start in range(0, num_examples, size):
        yield Range(logs, start, min(start + size, num_examples))


def counts(logs: Sequence[Log], num_examples: int) -> NDArray[np.int64]:
    """Number of presentations of each example, shape ``(num_examples,)``."""
    return _counted(logs, num_examples).astype(np.int64)


def longest(logs: Sequence[Log], num_examples: int) -> int:
    """Largest number of presentations of any example."""
    return int(_counted(logs, num_examples).max())


def _counted(logs: Sequence[Log], num_examples: int) -> NDArray[np.int32]:
    total = np.zeros(num_examples, np.int32)
    for log in logs:
        index = log.index()
        for begin in range(0, len(index), _BLOCK):
            try:
                # A one of another type would be converted, each time: 18 times as slow.
                np.add.at(total, index[begin : begin + _BLOCK], np.int32(1))
            except IndexError as error:
                raise ValueError(f"{log.place} is damaged: {error}") from error
    return total


def _rows(log: Log, start: int, stop: int) -> NDArray[np.int64]:
    index, found = log.index(), [np.empty(0, np.int64)]
    unsigned = np.dtype(f"u{index.dtype.itemsize}")
    for begin in range(0, len(index), _BLOCK):
        # What is below the range wraps around and lies above it: one comparison is enough.
        beyond = (index[begin : begin + _BLOCK] - index.dtype.type(start)).view(unsigned)
        found.append(np.flatnonzero(beyond < stop - start) + begin)
    return np.concatenate(found)


def _steps(log: Log, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    updates = log.updates()
    return updates[np.searchsorted(updates[:, 1], rows, side="right"), 0]
