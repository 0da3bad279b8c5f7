"""The trainings of a study: done one after the other, shared among processes, resumed."""

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
    """One training, or several that are done together.

    Attributes:
        condition: What it trains on; ``None`` for several kinds of data.
        seed: Seed of the network, the order of the examples and the noise.
        task: What else it is about, where a study has more than one.
    """

    condition: Condition | None
    seed: int
    task: str | None = None

    @property
    def name(self) -> str:
        """Name in files."""
        key = self.condition and self.condition.key
        return "-".join(filter(None, (self.task, key, f"seed{self.seed}"))).replace(" ", "-")

    @property
    def title(self) -> str:
        """Name for people."""
        title = self.condition and self.condition.title
        return ", ".join(filter(None, (self.task, title, f"seed {self.seed}")))

    @property
    def values(self) -> dict[str, Any]:
        """What its lines begin with."""
        task = {} if self.task is None else {"task": self.task}
        condition = {} if self.condition is None else {"condition": self.condition.key}
        return task | condition | {"seed": self.seed}


def run_cells(
    folder: RunFolder,
    cells: Sequence[Cell],
    train: Callable[[Cell, Tell], None],
    *,
    lines: int | Callable[[Cell], int],
    results: Callable[[Cell], Sequence[Path]] = lambda cell: (),
    scratch: Callable[[Cell], Sequence[Path]] = lambda cell: (),
    epochs: int,
    threads: int,
    progress: Progress | None,
) -> None:
    """Do all trainings, or those that are not finished yet.

    Other processes may do the same at the same time: no training is done by two of them, and all
    return when all trainings are finished.

    Args:
        folder: The run folder.
        cells: All trainings, in order.
        train: Does one, and tells the epochs of it that are done.
        lines: Lines in the log of a finished training; a function of the cell where they differ.
        results: Files that a finished training has.
        scratch: Files that only an unfinished training may have.
        epochs: Epochs of a training.
        threads: CPU threads to use.
        progress: Told about every training.
    """
    tell = progress or (lambda line, epochs: None)

    def finish(cell: Cell, *, wait: bool) -> bool:
        log = folder.log(cell.name)
        with log.locked(wait=wait) as is_ours:
            if not is_ours:
                return False
            expected = lines(cell) if callable(lines) else lines
            if len(log.rows()) == expected and all(path.exists() for path in results(cell)):
                log.cut(lambda row: False)
                tell(cell.title, epochs)
            else:
                tell(cell.title, 0)
                train(cell, partial(tell, cell.title))
            for path in scratch(cell):
                path.unlink(missing_ok=True)
        return True

    with _threads(threads):
        elsewhere = [cell for cell in cells if not finish(cell, wait=False)]
        for cell in elsewhere:
            finish(cell, wait=True)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
