"""Time and memory of both gradient norms, and of a training step, as one size of a problem grows.

No size here needs more than 1 GiB.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench import steps
from bench.memory import peak_mib
from bench.problems import CLASSES, Mean, Problem
from bench.timing import Effort, in_turn
from memtools.models import MLP


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
    "batch": Axis(batch, [2**k for k in range(4, 11)], "MLP 784-512-512-10, examples"),
    "sequence": Axis(
        sequence, [2**k for k in range(6, 13)], "linear layers 64-64-64-10, batch 8, positions"
    ),
    "width": Axis(width, [2**k for k in range(7, 12)], "MLP 784-w-w-10, batch 256, width w"),
}
TOOLS = {"plain": steps.plain, "memtools both": steps.both}


def measure(effort: Effort) -> Iterator[Point]:
    for name, axis in AXES.items():
        for size in axis.sizes:
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
    for name, axis in AXES.items():
        for tool in TOOLS:
            chosen = [p for p in points if (p.axis, p.tool) == (name, tool)]
            chosen = chosen[-(len(axis.sizes) // 2 + 1) :]
            sizes = np.log([p.size for p in chosen])
            for what in ("seconds", "memory_mib"):
                values = np.log([getattr(p, what) for p in chosen])
                if not np.isfinite(values).all():
                    continue
                slope = round(float(np.polyfit(sizes, values, 1)[0]), 2)
                found.setdefault(name, {}).setdefault(tool, {})[what] = slope
    return found
