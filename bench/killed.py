"""Processes that are killed with SIGKILL at random moments, started again, and looked after."""

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[Path], object]
"""Begins a job in a folder, or goes on with it."""

BY_CLOCK, BY_OPERATION = "by the clock", "at a file operation"
NOTHING_YET, HALF_WRITTEN, ALL_WHOLE = "no file yet", "something half written", "all files whole"
LOOK = 0.002
"""Seconds between two looks at the processes."""
SHARE = 0.6
"""Of an undisturbed run, before which a process is killed: it goes on with what others did."""
CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir"}

# A fork of a process that has imported everything is there at once.
CONTEXT: Any = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed.

    Attributes:
        seconds: How long it took.
        operations: How often it opened a file to write, renamed, cut or removed one.
    """

    seconds: float
    operations: int


def undisturbed(work: Work, folder: Path) -> Undisturbed:
    """Do a job in a process of its own."""
    operations = CONTEXT.Value("l")
    begun = time.monotonic()
    process = _started(work, folder, lambda number: setattr(operations, "value", number))
    process.join()
    _refuse_failure(process, folder)
    return Undisturbed(time.monotonic() - begun, operations.value)


class Killer:
    """Kills the processes of runs, half of them by the clock, half at a file operation.

    Args:
        work: The job.
        processes: So many share it.
        alone: An undisturbed run by one process.
        kills: How many.

    Attributes:
        kills: How many there were of each kind.
        fell: What they left behind, as far as it can be seen.
    """

    def __init__(self, work: Work, processes: int, alone: Undisturbed, kills: int) -> None:
        self._work, self._processes, self._alone, self._enough = work, processes, alone, kills
        self._random = random.Random(0)
        self.kills = Counter({BY_CLOCK: 0, BY_OPERATION: 0})
        self.fell = Counter({NOTHING_YET: 0, HALF_WRITTEN: 0, ALL_WHOLE: 0})

    @property
    def is_done(self) -> bool:
        """Whether there were enough kills."""
        return self.kills.total() >= self._enough

    def run(self, folder: Path) -> None:
        """One run from nothing to its end; whoever is killed is followed by another."""
        alive = [self._begin(folder) for _ in range(self._processes)]
        while alive:
            time.sleep(LOOK)
            for one in list(alive):
                process, kind, end = one
                if time.monotonic() > end and process.is_alive():
                    process.kill()
                    process.join()
                if process.exitcode is None:
                    continue
                alive.remove(one)
                if process.exitcode == -signal.SIGKILL:
                    self._count(kind, folder)
                    alive.append(self._begin(folder))
                else:
                    _refuse_failure(process, folder)

    def _begin(self, folder: Path) -> tuple[BaseProcess, str, float]:
        kind = min((BY_CLOCK, BY_OPERATION), key=lambda kind: self.kills[kind])
        end, last = float("inf"), 0
        share = self._random.uniform(0, SHARE)
        if not self.is_done:
            if kind == BY_CLOCK:
                end = time.monotonic() + share * self._alone.seconds
            else:
                last = 1 + int(share * self._alone.operations / self._processes)

        def die(number: int) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        return _started(self._work, folder, die), kind, end

    def _count(self, kind: str, folder: Path) -> None:
        self.kills[kind] += 1
        if not any(path.is_file() for path in folder.rglob("*")):
            self.fell[NOTHING_YET] += 1
        else:
            self.fell[HALF_WRITTEN if is_half_written(folder) else ALL_WHOLE] += 1


def is_half_written(folder: Path) -> bool:
    """Whether a file waits for its name, a line for its end, or rows for their update."""
    for path in folder.rglob("*"):
        if path.name.endswith(".tmp"):
            return True
        if path.suffix == ".jsonl" and path.read_bytes()[-1:] not in (b"", b"\n"):
            return True
        if path.name == "updates":
            rows = np.fromfile(path, np.int64)[1::2]
            index = path.with_name("index").stat().st_size
            if index > 4 * (rows[-1] if len(rows) else 0):
                return True
    return False


def _started(work: Work, folder: Path, told: Callable[[int], None]) -> BaseProcess:
    process = CONTEXT.Process(target=_do, args=(work, folder, told))
    process.start()
    return process


def _do(work: Work, folder: Path, told: Callable[[int], None]) -> None:
    number = 0

    def look(event: str, details: tuple[Any, ...]) -> None:
        nonlocal number
        if event in CHANGES or (event == "open" and _is_to_write(details)):
            number += 1
            told(number)

    sys.addaudithook(look)
    with _log(folder).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            work(folder)
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)


def _is_to_write(details: tuple[Any, ...]) -> bool:
    return bool(details[2] & (os.O_WRONLY | os.O_RDWR)) and str(details[0]) != os.devnull


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def _refuse_failure(process: BaseProcess, folder: Path) -> None:
    if process.exitcode:
        for other in multiprocessing.active_children():
            other.kill()
        raise RuntimeError(_log(folder).read_text())
