"""Memory that a call needs at its peak, measured in a process of its own. Linux only."""

import copy
import ctypes
import gc
import math
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Build = Callable[..., Any]
"""A function of a module, as another process has to find it."""


def peak_mib(
    build: Build,
    argument: str | int,
    call: Callable[..., object],
    warm_up: str | int | None = None,
) -> float:
    """Resident memory, beyond what is there before, that a call needs at its peak, in MiB.

    The call is the first on its model, but not the first of its process. NaN where there is no
    ``/proc``, or the process was ended for want of memory.

    Args:
        build: Makes what the call takes, with a field ``model``.
        argument: For ``build``.
        call: What is measured.
        warm_up: For ``build``: what the first call takes; ``None`` is ``argument``. Many small
            tensors stay with the process when they are freed: a smaller first call leaves less.
    """
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    # Memory that is freed leaves the process at once, so that the peak is what was in use.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    # Every process is a fork of one that has imported everything and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.steps", "bench.problems"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(build, argument, call, warm_up, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return math.nan
    finally:
        process.join()


def _measure(
    build: Build,
    argument: str | int,
    call: Callable[..., object],
    warm_up: str | int | None,
    to: Connection,
) -> None:
    torch.set_num_threads(1)
    problem = build(argument)
    # Code is loaded, and libraries fill their caches, when they are first used.
    first = problem if warm_up is None else build(warm_up)
    call(first._replace(model=copy.deepcopy(first.model)))
    gc.collect()
    forget_peak()
    before = resident_kib()
    call(problem)
    to.send((peak_kib() - before) / 1024)


def peak_of_fork(run: Callable[[], object]) -> float:
    """Resident memory that a call needs at its peak, in MiB, in a fork of this process.

    Quick, since nothing is imported or prepared anew. NaN where there is no ``/proc``.
    """
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            give_back_at_once()
            forget_peak()
            before = resident_kib()
            run()
            theirs.send((peak_kib() - before) / 1024)
        finally:
            os._exit(0)
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return math.nan
    finally:
        os.waitpid(child, 0)


def give_back_at_once() -> None:
    """From here on, memory that is freed leaves the process, as does what is free already."""
    trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 65536)
        library.mallopt(mmap_threshold, 65536)
        library.malloc_trim(0)


def forget_peak() -> None:
    """Begin anew with what :func:`peak_kib` gives."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_kib() -> int:
    """Largest resident memory of this process since the last :func:`forget_peak`."""
    return _kib("VmHWM")


class OwnMemory:
    """Watches the memory of this process that is no mapped file: the peak of its block, in MiB.

    Pages of a mapped file are the system's cache, which gives them up when memory is short.
    """

    def __enter__(self) -> "OwnMemory":
        gc.collect()
        # What was freed before, and would be used again unseen, goes back to the system.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = self._peak = _kib("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float:
        return (self._peak - self._before) / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, _kib("RssAnon"))


def resident_kib() -> int:
    """Resident memory of this process."""
    return _kib("VmRSS")


def data_kib() -> int:
    """Memory of this process that counts as data, resident or not."""
    return _kib("VmData")


def _kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise ValueError(f"no {field} in /proc/self/status")
