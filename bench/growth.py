"""How far each implementation goes: a size grows until memory or patience ends.

``python -m bench.growth [--quick] [--only AXIS] [--patience SECONDS] [--memory GIB]
[--results FOLDER]``: measure on one thread, print, and keep the results in ``bench/results``; with
``--quick`` or ``--only`` they are kept only in a folder that is named. Linux only.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bench import scaling, steps
from bench.cases import gradients, histories, inequality, searches
from bench.cases.operation import Run, Way, versions
from bench.critical_peers import Cell
from bench.kept import RESULTS, circumstances, first_words, keep, show
from bench.memory import data_kib, forget_peak, give_back_at_once, peak_kib, resident_kib
from bench.problems import CLASSES, Problem
from memtools.models import MLP

FACTOR = 4
"""Between one size and the next."""
SHORT = 0.1
"""Seconds; what takes less is timed five times."""


class Point(NamedTuple):
    """A size of a problem; the field names are the columns of the file."""

    axis: str
    implementation: str
    size: int
    status: str
    """``ok``, or why it ends here: ``memory``, ``patience``, ``refuses``."""
    seconds: float | None = None
    """CPU time of a call."""
    memory_mib: float | None = None
    """Resident at its peak, beyond what was there before the first call."""
    message: str = ""


class Limits(NamedTuple):
    """What a call may take."""

    seconds: int
    """CPU time."""
    bytes: int
    """Of data, beyond what the process has before."""


class Axis(NamedTuple):
    what: str
    build: Callable[[int], Any]
    first: int
    ways: Mapping[str, Way]


def depth(size: int) -> Problem:
    targets = torch.randint(CLASSES, (64,))
    return Problem("", MLP((784,), CLASSES, width=128, depth=size), torch.randn(64, 784), targets)


def classes(size: int) -> Problem:
    """Class numbers of all classes, so that each has an example."""
    model = MLP((784,), size, width=128)
    return Problem("", model, torch.randn(64, 784), torch.arange(64) % size)


def box(size: int) -> Cell:
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    return Cell(model.requires_grad_(False), torch.rand(size, 784), searches.RADIUS)


def plain(problem: Problem) -> Run:
    """The forward and backward pass of a training step."""
    return partial(steps.plain, problem)


def some(ways: Mapping[str, Way], *names: str) -> dict[str, Way]:
    return {name: ways[name] for name in names}


NORMS = {"plain pass": plain} | some(
    gradients.OF_PARAMETERS,
    "memtools", "naive loop", "vmap", "opacus hooks", "opacus ghost", "backpack",
)  # fmt: skip
AXES = {
    "batch": Axis("parameter norms, MLP 784-512-512-10", scaling.batch, 16, NORMS),
    "width": Axis("parameter norms, MLP 784-w-w-10, batch 256", scaling.width, 32, NORMS),
    "depth": Axis("parameter norms, MLP of width 128, batch 64", depth, 2, NORMS),
    "sequence": Axis(
        "parameter norms, linear layers 64-64-64-10, batch 8", scaling.sequence, 16, NORMS
    ),
    "classes": Axis(
        "class sensitivity, MLP 784-128-128-C, 64 examples",
        classes,
        4,
        some(gradients.OF_CLASSES, "memtools", "eager", "naive loop", "vmap", "captum"),
    ),
    "values": Axis(
        f"Gini coefficient of {inequality.ROWS} rows",
        inequality.values,
        256,
        some(inequality.WAYS, "memtools", "eager", "numpy", "naive loop"),
    ),
    "history": Axis(
        f"forgetting events, {histories.EPOCHS} epochs, examples",
        histories.presentations,
        256,
        histories.OPERATIONS["forgetting events"].ways,
    ),
    "box search": Axis("MLP 784-128-10, examples", box, 16, searches.SEARCHES),
}


def points(name: str, axis: Axis, limits: Limits, largest: float) -> Iterator[Point]:
    """Every implementation up to the size at which it ends."""
    for way, prepare in axis.ways.items():
        try:  # so that what it imports is there for all sizes
            prepare(axis.build(axis.first))()
        except ImportError:
            continue
        except Exception as refusal:
            yield Point(name, way, axis.first, "refuses", message=first_words(refusal))
            continue
        size = axis.first
        while size <= largest:
            point = in_fork(Point(name, way, size, ""), partial(axis.build, size), prepare, limits)
            yield point
            if point.status != "ok":
                break
            size *= FACTOR


def in_fork(point: Point, build: Callable[[], Any], prepare: Way, limits: Limits) -> Point:
    """One size in a process of its own, which the system ends when its time is over."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            theirs.send(_measured(build, prepare, limits))
        finally:
            os._exit(0)
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = {}
    _, ended = os.waitpid(child, 0)
    if not found:
        late = os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGXCPU
        found = {"status": "patience" if late else "memory"}
    return point._replace(**found)


def _measured(build: Callable[[], Any], prepare: Way, limits: Limits) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = 1024 * data_kib() + limits.bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    give_back_at_once()
    try:
        run = prepare(build())
        before = resident_kib()
        _be_patient(limits.seconds)
        run()  # what the first call alone has to find out
        forget_peak()
        _be_patient(limits.seconds)
        seconds = [_seconds(run)]
        memory = (peak_kib() - before) / 1024
        if seconds[0] < SHORT:
            seconds += [_seconds(run) for _ in range(4)]
        return {"status": "ok", "seconds": float(np.median(seconds)), "memory_mib": memory}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return {"status": "memory"}
        return {"status": "refuses", "message": first_words(error)}
    except Exception as refusal:
        return {"status": "refuses", "message": first_words(refusal)}


def _seconds(run: Run) -> float:
    # A process with a limit on its CPU time has that of its threads alone to the nanosecond.
    start = time.thread_time()
    run()
    return time.thread_time() - start


def _be_patient(seconds: int) -> None:
    """From now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def exponents(found: Sequence[Point]) -> dict[str, dict[str, dict[str, float]]]:
    """Slopes in double logarithmic scales over the larger half of the sizes: axis, way, what."""
    slopes: dict[str, dict[str, dict[str, float]]] = {}
    for name, axis in AXES.items():
        for way in axis.ways:
            chosen = [p for p in found if (p.axis, p.implementation, p.status) == (name, way, "ok")]
            chosen = chosen[-(len(chosen) // 2 + 1) :]
            if len(chosen) < 2:
                continue
            sizes = np.log([p.size for p in chosen])
            for what in ("seconds", "memory_mib"):
                values = [getattr(p, what) for p in chosen]
                if min(values) > 0:
                    slope = round(float(np.polyfit(sizes, np.log(values), 1)[0]), 2)
                    slopes.setdefault(name, {}).setdefault(way, {})[what] = slope
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth")
    parser.add_argument("--quick", action="store_true", help="two sizes: to see that it runs")
    parser.add_argument("--only", choices=AXES, metavar="AXIS", help="this one alone")
    parser.add_argument("--patience", type=int, default=2, help="CPU seconds of a call")
    parser.add_argument("--memory", type=float, default=2, help="GiB of a process")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.only)
    folder = arguments.results or (RESULTS if whole else None)

    warnings.simplefilter("ignore")  # other tools' use of deprecated functions
    torch.set_num_threads(1)
    torch.manual_seed(0)
    limits = Limits(arguments.patience, int(arguments.memory * 2**30))
    about = circumstances() | {
        "peers": versions(),
        "quick": arguments.quick,
        "patience_seconds": limits.seconds,
        "memory_gib": arguments.memory,
    }
    show(Point._fields)
    found = []
    for name in [arguments.only] if arguments.only else AXES:
        axis = AXES[name]
        largest = axis.first * FACTOR if arguments.quick else math.inf
        for point in points(name, axis, limits, largest):
            show(point)
            found.append(point)
    about["axes"] = {name: axis.what for name, axis in AXES.items()}
    about["exponents"] = exponents(found)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "growth.csv", Point, found)
        (folder / "growth.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes table and figure of it")


if __name__ == "__main__":
    main()
