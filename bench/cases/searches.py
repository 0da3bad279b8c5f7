"""Searches of the box around each example for a point of another predicted class."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import memtools
from bench import critical_reference
from bench.cases.gradients import in_float64, loss_of_one, shortened, weights_of
from bench.cases.operation import Operation, Run, Sizes, Way, compiled
from bench.critical_peers import PEERS, Cell, frozen_loop, predicted
from bench.searched import ROUNDING

RADIUS, STEPS = 0.01, 10
STEP = RADIUS * 0.25 / 0.3

Gradient = Callable[[Tensor, Tensor], Tensor]
"""Of the loss with respect to points, towards labels."""


def cell(size: int) -> Cell:
    """The MLP with pixels in [0, 1]."""
    problem = shortened("mlp", size)
    inputs = torch.rand(problem.inputs.shape, generator=torch.Generator().manual_seed(0))
    return Cell(problem.model.requires_grad_(False), inputs, RADIUS)


def cell_in_float64(cell: Cell) -> Cell:
    wide = in_float64(cell.model)
    return cell._replace(model=wide, inputs=cell.inputs.double())


# The paper's search without its noise, so that all do the same


def by_autograd(cell: Cell) -> Gradient:
    def gradient(point: Tensor, labels: Tensor) -> Tensor:
        x = point.detach().requires_grad_()
        loss = F.cross_entropy(cell.model(x), labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    return gradient


def by_vmap(cell: Cell) -> Gradient:
    each = torch.func.grad(partial(loss_of_one, cell.model, weights_of(cell.model)))
    return torch.func.vmap(each)


def by_compiler(cell: Cell) -> Gradient:
    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(cell.model(x), labels, reduction="sum")

    return compiled(torch.func.grad(loss))


def climbed(cell: Cell, gradient: Gradient) -> Tensor:
    """Which examples flip; those that have flipped climb on with the others."""
    labels, low, high = predicted(cell), cell.inputs - RADIUS, cell.inputs + RADIUS
    point, found = cell.inputs, torch.zeros(len(cell.inputs), dtype=torch.bool)
    for _ in range(STEPS):
        point = (point + STEP * gradient(point, labels).sign()).clamp(low, high)
        with torch.no_grad():
            found |= cell.model(point).argmax(1) != labels
    return found


def by_loop(cell: Cell) -> Tensor:
    """One example at a time, each until it flips."""
    found, gradient = [], by_autograd(cell)
    for x in cell.inputs.split(1):
        label, point = predicted(cell._replace(inputs=x)), x
        flips = False
        for _ in range(STEPS):
            point = (point + STEP * gradient(point, label).sign()).clamp(x - RADIUS, x + RADIUS)
            with torch.no_grad():
                flips = bool(cell.model(point).argmax(1) != label)
            if flips:
                break
        found.append(flips)
    return torch.tensor(found)


def by_memtools(cell: Cell) -> Tensor:
    return memtools.find_critical(
        cell.model, cell.inputs, radius=RADIUS, noise=0, max_steps=STEPS
    ).is_critical


def climbing(gradient: Callable[[Cell], Gradient]) -> Way:
    return lambda cell: partial(climbed, cell, gradient(cell))


CLIMBS: dict[str, Way] = {
    "memtools": lambda cell: partial(by_memtools, cell),
    "eager": climbing(by_autograd),
    "naive loop": lambda cell: partial(by_loop, cell),
    "vmap": climbing(by_vmap),
    "torch.compile": climbing(by_compiler),
}


def share_that_differs(cell: Cell, found: Tensor, expected: Tensor) -> float:
    return float((found != expected.bool()).double().mean())


# Any search, judged by the points that it finds


def searching(method: str) -> Way:
    def prepare(cell: Cell) -> Run:
        return lambda: (
            memtools.find_critical(
                cell.model, cell.inputs, radius=RADIUS, bounds=(0, 1), method=method
            ).points
        )

    return prepare


def share_missed(cell: Cell, points: Tensor, expected: Tensor) -> float:
    """Share of the critical examples for which there is no point that flips in float64."""
    wide = cell_in_float64(cell)
    flips = predicted(wide._replace(inputs=points.double())) != predicted(wide)
    if bool(((points - cell.inputs).abs() > RADIUS + ROUNDING).any()):
        raise ValueError("points outside the box")
    known = expected.bool()
    return float((known & ~flips).sum() / known.sum().clamp(min=1))


def strongest(cell: Cell) -> Tensor:
    """What many restarts of three strong searches find in float64."""
    wide = cell_in_float64(cell)
    return critical_reference.union(wide.model, wide.inputs, RADIUS)


SEARCHES: dict[str, Way] = {
    "memtools": searching("auto"),
    "memtools, lass": searching("lass"),
    "naive loop": frozen_loop,
    **PEERS,
}

MLP = "MLP 784-512-512-10, 64 examples"
OPERATIONS = {
    "critical sample ratio": Operation(
        f"{MLP}, {STEPS} steps without noise",
        cell,
        Sizes(16, 64),
        lambda cell: by_loop(cell_in_float64(cell)),
        # A flip that hangs on the last digit.
        0.01,
        CLIMBS,
        share_that_differs,
    ),
    "box search": Operation(
        f"{MLP}; the error is the share of the critical examples that is missed",
        cell,
        Sizes(16, 64),
        strongest,
        0.05,
        SEARCHES,
        share_missed,
    ),
}
