"""Timing in turn: what is compared runs in the same rounds, so that a busy machine slows all."""

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Make = Callable[[], Callable[[], object]]
"""Gives what is timed; called before every round, in which its own time does not count."""


class Timing(NamedTuple):
    """Time of a call, by itself and beside the reference of the same round."""

    ratio: float
    p20: float
    p80: float
    seconds: float
    rounds: int


class Effort(NamedTuple):
    """How long to go on."""

    share: float
    """Seconds for each call that is timed."""
    fewest: int
    most: int = 100
    few: int = 3
    """Fewest rounds of a call that takes more than 5 times as long as the reference."""

    def rounds(self, seconds: Mapping[str, float]) -> dict[str, int]:
        """Rounds of each call, from what a call takes; one number for all that are fast."""
        fast = [s for s in seconds.values() if s <= 5 * seconds[""]]
        together = self._between(self.fewest, len(fast) / sum(fast))
        return {
            name: together if s <= 5 * seconds[""] else self._between(self.few, 1 / s)
            for name, s in seconds.items()
        }

    def _between(self, fewest: int, frequency: float) -> int:
        return max(fewest, min(self.most, int(self.share * frequency)))


FULL, QUICK = Effort(share=1.5, fewest=5), Effort(share=0.1, fewest=2, most=5, few=1)


def in_turn(
    reference: Callable[[], object],
    others: Mapping[str, Make],
    effort: Effort,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time calls beside a reference, in rounds in which each of them runs at most once.

    Args:
        reference: What the others are compared with.
        others: By name, what makes them.
        effort: How long to go on.
        clock: ``time.process_time`` leaves out what other processes take of a busy machine.

    Returns:
        Timings by name; that of the reference, with the ratio 1, under the empty name.
    """
    makes: dict[str, Make] = {"": lambda: reference, **others}
    # Also warms up what the first call of a process does.
    once = {name: _seconds(make(), clock) for name, make in makes.items()}
    rounds = effort.rounds(once)
    total = rounds[""] = max(rounds.values())
    seconds: dict[str, list[float]] = {name: [] for name in makes}
    ratios: dict[str, list[float]] = {name: [] for name in makes}
    order = random.Random(0)
    for r in range(total):
        # Those of fewer rounds are spread over all of them.
        names = [name for name, n in rounds.items() if (r + 1) * n // total > r * n // total]
        # What ran before leaves its traces in the caches: everybody gets every neighbour.
        order.shuffle(names)
        now = {name: _seconds(makes[name](), clock) for name in names}
        for name in names:
            seconds[name].append(now[name])
            ratios[name].append(now[name] / now[""])
    return {name: _timing(seconds[name], ratios[name]) for name in makes}


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _timing(seconds: list[float], ratios: list[float]) -> Timing:
    p20, p50, p80 = (float(v) for v in np.percentile(ratios, (20, 50, 80)))
    return Timing(p50, p20, p80, float(np.median(seconds)), len(ratios))
