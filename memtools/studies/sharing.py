"""The trainings of a study shared among processes."""

import importlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from queue import Empty
from types import ModuleType
from typing import Any

from memtools.studies.cells import Progress
from memtools.studies.config import Settings
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder

__all__ = ["study_of", "sweep"]

_told: Any = None
"""What this process, one of those that share, tells its progress through."""

PATIENCE = 0.2
"""Seconds between two looks at whether the processes are done."""


def study_of(config: Settings) -> ModuleType:
    """The study that a configuration belongs to."""
    return importlib.import_module(type(config).__module__.rpartition(".")[0])


def sweep(
    config: Settings,
    out: Path,
    *,
    processes: int = 1,
    data: Data | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Run a study, its trainings shared among processes of this machine.

    Each process does whole trainings, and no training is done twice; the files are the same for
    any number of processes. Processes are started anew, so that a script that calls this needs
    ``if __name__ == "__main__":``. Any other process that runs the same study in the same folder,
    on whatever machine sees its file locks, takes part as well.

    Args:
        config: All settings.
        out: The run folder.
        processes: How many.
        data: What the study's ``prepare`` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    study = study_of(config)
    if processes == 1:
        return study.run(config, out, data=data, progress=progress)
    tell = _capped(progress, getattr(config, "epochs", 1)) if progress else lambda *_: None
    device = (study.prepare(config) if data is None else data).device
    name = study.__name__.rpartition(".")[2].replace("_", "-")
    folder = RunFolder.open(out, name, config.as_json(), str(device))
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    with ProcessPoolExecutor(processes, context, _begin, (told,)) as pool:
        shares = [pool.submit(_share, config, out) for _ in range(processes)]
        while wait(shares, 0).not_done:
            for line, epochs in _waiting(told):
                tell(line, epochs)
            if any(share.done() and share.exception() for share in shares):
                break
        for share in shares:
            share.result()
        for line, epochs in _waiting(told):
            tell(line, epochs)
    return folder


def _begin(told: Any) -> None:
    """Keep what this process tells through; it cannot be passed with each call."""
    global _told
    _told = told


def _share(config: Settings, out: Path) -> None:
    study_of(config).run(config, out, progress=lambda line, epochs: _told.put((line, epochs)))


def _capped(progress: Progress, epochs: int) -> Progress:
    """Every process tells of what others have finished as well; that counts once."""
    done: Counter[str] = Counter()

    def tell(line: str, more: int) -> None:
        news = min(more, epochs - done[line])
        if news or line not in done:
            done[line] += news
            progress(line, news)

    return tell


def _waiting(told: Any) -> Iterator[tuple[str, int]]:
    try:
        yield told.get(timeout=PATIENCE)
        while True:
            yield told.get_nowait()
    except Empty:
        return
