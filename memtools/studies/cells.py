"""The trainings of a study, done one after the other, and gone on with after a kill."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memtools.studies.conditions import Condition
from memtools.studies.folder import RunFolder

__all__ = ["Cell", "Progress", "Tell", "run_cells"]

Tell = Callable[[int], None]
"""Called with the number of epochs just finished."""

Progress = Callable[[str, int], None]
"""Called with a line on what is going on and the number of epochs just finished."""


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        condition: What it trains on.
        seed: Seed of the network, the order of the examples and the noise.
        task: What the targets are, where a study has more than one task.
    """

    condition: Condition
    seed: int
    task: str | None = None

    @property
    def name(self) -> str:
        """Name in files."""
        return "-".join(filter(None, (self.task, self.condition.key, f"seed{self.seed}")))

    @property
    def title(self) -> str:
        """Name for people."""
        return ", ".join(filter(None, (self.task, self.condition.title, f"seed {self.seed}")))

    @property
    def values(self) -> dict[str, Any]:
        """What its lines of ``metrics.jsonl`` begin with."""
        task = {} if self.task is None else {"task": self.task}
        return task | {"condition": self.condition.key, "seed": self.seed}


def run_cells(
    folder: RunFolder,
    cells: Sequence[Cell],
    train: Callable[[Cell, Tell], None],
    *,
    lines: int,
    results: Callable[[Cell], Sequence[Path]],
    scratch: Callable[[Cell], Sequence[Path]] = lambda cell: (),
    epochs: int,
    threads: int,
    progress: Progress | None,
) -> None:
    """Do all trainings, or those that are not finished yet.

    Args:
        folder: The run folder; no other process may use it meanwhile.
        cells: All trainings, in order.
        train: Does one, and tells the epochs of it that are done.
        lines: Lines of ``metrics.jsonl`` that a finished training has.
        results: Files that a finished training has.
        scratch: Files that only an unfinished training may have.
        epochs: Epochs of a training.
        threads: CPU threads to use.
        progress: Told about every training.
    """
    tell = progress or (lambda line, epochs: None)
    with folder.locked(), _threads(threads):
        first = _first_unfinished(folder, cells, lines, results)
        for cell in cells[:first]:
            _remove(scratch(cell))
        for cell in cells[first + 1 :]:
            _remove([*results(cell), *scratch(cell)])
        for number, cell in enumerate(cells):
            tell(cell.title, 0 if number >= first else epochs)
            if number >= first:
                train(cell, partial(tell, cell.title))


def _first_unfinished(
    folder: RunFolder,
    cells: Sequence[Cell],
    lines: int,
    results: Callable[[Cell], Sequence[Path]],
) -> int:
    """Position of the first training that is not finished.

    Lines of ``metrics.jsonl`` are in the order of the trainings, so what comes after one that has
    to be done again cannot stay either.
    """
    folder.drop_rows_from(lambda row: False)
    for number, cell in enumerate(cells):
        if folder.count_rows(**cell.values) != lines:
            return number
        if not all(path.exists() for path in results(cell)):
            return number
    return len(cells)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
