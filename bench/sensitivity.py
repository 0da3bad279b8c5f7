"""Loss sensitivity through the training: time, memory and error beside autograd's own.

``python -m bench.sensitivity [--quick] [--results FOLDER]``: measure on one thread, print, and keep
the results in ``bench/results``; with ``--quick`` they are kept only in a folder that is named.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.kept import RESULTS, circumstances, keep, show
from bench.memory import peak_mib
from bench.timing import FULL, QUICK, Effort, in_turn
from bench.unrolled import Training, paper, recorded, unrolled
from memtools import TrainingTape, gini, loss_sensitivity

UPDATES = 400
"""20 epochs of 1,000 examples in batches of 50."""


class Cost(NamedTuple):
    """A way to the sensitivities at so many evaluation times; the fields are the columns."""

    threads: int
    times: int
    tool: str
    ratio: float
    """Time over that of memtools."""
    ratio_p20: float
    ratio_p80: float
    rounds: int
    seconds: float
    relative_error: float | None = None
    """Largest difference from autograd through the unrolled loop, over the largest value."""


class Memory(NamedTuple):
    """Peak memory of training and sensitivity at 8 times, over so many updates."""

    updates: int
    tool: str
    memory_mib: float


class Approximation(NamedTuple):
    """What an approximation to the mean sensitivity over all updates costs and gives."""

    kind: str
    setting: int
    cost: float
    """Time over that of the exact result."""
    median_error: float
    """Relative error of an example, in the middle of all examples."""
    rank_correlation: float
    gini_error: float


def costs(updates: int, effort: Effort) -> Iterator[Cost]:
    training = paper(updates)
    tape = recorded(training)
    for times in (tape.spaced(20), list(range(1, updates + 1))):
        ours = partial(sensitivity, tape, training, times)
        theirs = partial(unrolled, training, times)
        expected = theirs()
        error = float((ours() - expected).abs().max() / expected.abs().max())
        others = {
            "unrolled loop": lambda theirs=theirs: theirs,
            "training": lambda: partial(recorded, training),
        }
        for name, t in in_turn(ours, others, effort).items():
            yield Cost(
                torch.get_num_threads(),
                len(times),
                name or "memtools",
                t.ratio,
                t.p20,
                t.p80,
                t.rounds,
                t.seconds,
                None if name else error,
            )


def costs_on(threads: Sequence[int], updates: int, effort: Effort) -> Iterator[Cost]:
    before = torch.get_num_threads()
    for number in threads:
        torch.set_num_threads(number)
        yield from costs(updates, effort)
    torch.set_num_threads(before)


def sensitivity(tape: TrainingTape, training: Training, at: list[int], **options: Any) -> Tensor:
    return loss_sensitivity(tape, (training.inputs, training.targets), at=at, **options)


def _spaced(updates: int) -> list[int]:
    return [updates * (i + 1) // 8 for i in range(8)]


def all_weights(training: Training) -> Tensor:
    times = _spaced(len(training.batches))
    return sensitivity(recorded(training), training, times)


def few_weights(training: Training) -> Tensor:
    updates = len(training.batches)
    return sensitivity(recorded(training, every=round(updates**0.5)), training, _spaced(updates))


def one_graph(training: Training) -> Tensor:
    return unrolled(training, _spaced(len(training.batches)))


WARM_UP = 16
"""Updates of the call before the one that is measured: as few as there are times, and some."""

MEMORY = {
    "memtools, every update kept": all_weights,
    "memtools, every √T-th kept": few_weights,
    "unrolled loop": one_graph,
}


def memory(quick: bool) -> Iterator[Memory]:
    for updates in (50, 100) if quick else (50, 100, 200, 400, 800, 1600):
        for name, call in MEMORY.items():
            yield Memory(updates, name, peak_mib(paper, updates, call, WARM_UP))


def approximations(updates: int) -> Iterator[Approximation]:
    training = paper(updates)
    tape = recorded(training)
    everything = list(range(1, updates + 1))
    run = partial(sensitivity, tape, training)
    run(everything)
    start = time.perf_counter()
    exact = run(everything).mean(0)
    whole = time.perf_counter() - start
    ways: list[tuple[str, int, list[int], dict[str, int]]] = [
        *(("spaced", k, tape.spaced(k), {}) for k in (1, 5, 10, 20, 50, 100)),
        *(("window", w, everything, {"window": w}) for w in (1, 5, 20, 50, 100, 200)),
        *(("sketch", m, everything, {"sketch": m}) for m in (4, 16, 64)),
    ]
    for kind, setting, times, options in ways:
        start = time.perf_counter()
        found = run(times, **options).mean(0)
        seconds = time.perf_counter() - start
        yield Approximation(
            kind,
            setting,
            seconds / whole,
            float(((found - exact).abs() / exact).median()),
            _rank_correlation(found, exact),
            float(gini(found) - gini(exact)),
        )


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sensitivity")
    parser.add_argument("--quick", action="store_true", help="short: to see that it runs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)
    updates = 40 if arguments.quick else UPDATES

    warnings.simplefilter("ignore")  # torch's own use of deprecated functions
    torch.set_num_threads(1)
    start = time.perf_counter()
    about = circumstances() | {"quick": arguments.quick, "updates": updates}
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    found: dict[type, list[Any]] = {Cost: [], Memory: [], Approximation: []}
    for kind, rows in (
        (Cost, costs_on((1, 2), updates, QUICK if arguments.quick else FULL)),
        (Memory, memory(arguments.quick)),
        (Approximation, approximations(updates)),
    ):
        show(kind._fields)
        for row in rows:
            show(row)
            found[kind].append(row)
    about["seconds"] = round(time.perf_counter() - start)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rows in found.items():
            keep(folder / f"sensitivity_{kind.__name__.lower()}.csv", kind, rows)
        (folder / "sensitivity.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes tables and figure of it")


if __name__ == "__main__":
    main()
