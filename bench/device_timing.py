"""Timing on a device: by its own clock where it has one, what is compared in turn."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

FLUSHED = 2**28
"""Floats that are written before each call: no cache holds its inputs, and the processor gets so
far ahead of the GPU that only the GPU's time is measured."""

Call = Callable[[], object]


class Times(NamedTuple):
    """Milliseconds of a call, and the memory it takes at its peak beyond what is there before."""

    median: float
    p20: float
    p80: float
    rounds: int
    peak_mib: float | None


def in_turn(calls: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, Times]:
    """Time calls in rounds in which each of them runs once, in a random order.

    Args:
        calls: What is timed.
        device: Where it runs.
        seconds: How long to go on, at least three rounds.
    """
    peaks = {name: _peak(call, device) for name, call in calls.items()}
    flushed = torch.empty(FLUSHED if device.type == "cuda" else 1, device=device)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, names = random.Random(0), list(calls)
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (rounds < 100 and time.perf_counter() < until):
        order.shuffle(names)
        for name in names:
            flushed.zero_()
            taken[name].append(_milliseconds(calls[name], device))
        rounds += 1
    return {name: _times(sorted(taken[name]), peaks[name]) for name in calls}


def _times(taken: list[float], peak: float | None) -> Times:
    last = len(taken) - 1
    low, high = taken[round(0.2 * last)], taken[round(0.8 * last)]
    return Times(statistics.median(taken), low, high, len(taken), peak)


def _milliseconds(call: Call, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def _peak(call: Call, device: torch.device) -> float | None:
    """The call is the second one: the first compiles."""
    call()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
