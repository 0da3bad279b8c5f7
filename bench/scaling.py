"""Time and memory of both gradient norms, and of a training step, as one size of a problem grows.

``python -m bench.scaling [--quick] [--results FOLDER]``: measure on one thread up to sizes that
take 24 GiB of memory, or seconds for a pass, print, and keep the results in ``bench/results``; with
``--quick``, small sizes, which are kept only in a folder that is named. ``bench.growth`` does the
same beside other tools, up to where each of them ends.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench import steps
from bench.kept import RESULTS, circumstances, keep, show
from bench.memory import peak_mib
from bench.problems import CLASSES, Mean, Problem
from bench.timing import Effort, in_turn
from memtools.models import MLP

SMALL = 1024
"""No size is larger in a quick run."""


class Point(NamedTuple):
    axis: str
    size: int
    tool: str
    seconds: float
    memory_mib: float


def _problem(model: nn.Module, inputs: Tensor) -> Problem:
    return Problem("", model, inputs, torch.randint(CLASSES, (len(inputs),)))


def batch(size: int) -> Problem:
    return _problem(MLP((784,), CLASSES, width=512), torch.randn(size, 784))


def sequence(size: int) -> Problem:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), Mean(1), nn.Linear(64, CLASSES)]
    return _problem(nn.Sequential(*layers), torch.randn(8, size, 64))


def width(size: int) -> Problem:
    return _problem(MLP((784,), CLASSES, width=size), torch.randn(256, 784))


class Axis(NamedTuple):
    build: Callable[[int], Problem]
    sizes: Sequence[int]
    what: str


AXES = {
    "batch": Axis(batch, [4**k for k in range(2, 9)], "MLP 784-512-512-10, examples"),
    "sequence": Axis(
        sequence, [4**k for k in range(3, 11)], "linear layers 64-64-64-10, batch 8, positions"
    ),
    "width": Axis(width, [2 * 4**k for k in range(3, 7)], "MLP 784-w-w-10, batch 256, width w"),
}
TOOLS = {"plain": steps.plain, "memtools both": steps.both}


def measure(effort: Effort, largest: float) -> Iterator[Point]:
    for name, axis in AXES.items():
        for size in [size for size in axis.sizes if size <= largest]:
            problem = axis.build(size)
            others = {"memtools both": lambda problem=problem: partial(steps.both, problem)}
            timings = in_turn(partial(steps.plain, problem), others, effort)
            for tool, call in TOOLS.items():
                seconds = timings["" if tool == "plain" else tool].seconds
                yield Point(name, size, tool, seconds, peak_mib(axis.build, size, call))


def exponents(points: Sequence[Point]) -> dict[str, dict[str, dict[str, float]]]:
    """Slopes in double logarithmic scales over the larger half of the sizes: axis, tool, what.

    Among the smaller half, costs count that do not grow.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in AXES:
        for tool in TOOLS:
            chosen = [p for p in points if (p.axis, p.tool) == (name, tool)]
            chosen = chosen[-(len(chosen) // 2 + 1) :]
            sizes = np.log([p.size for p in chosen])
            for what in ("seconds", "memory_mib"):
                values = np.log([getattr(p, what) for p in chosen])
                if not np.isfinite(values).all():
                    continue
                slope = round(float(np.polyfit(sizes, values, 1)[0]), 2)
                found.setdefault(name, {}).setdefault(tool, {})[what] = slope
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = circumstances()
    show(Point._fields)
    points = []
    for point in measure(Effort(share=0.5, fewest=1), SMALL if arguments.quick else np.inf):
        show(point)
        points.append(point)
    about["exponents"] = exponents(points)
    print(json.dumps(about["exponents"], indent=2))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "scaling.csv", Point, points)
        (folder / "scaling.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes table and figure of it")


if __name__ == "__main__":
    main()
