"""What the norms of every example's gradient cost beside what no way of getting them can save.

``python -m bench.floors [--quick] [--only PROBLEM] [--results FOLDER]``: plain PyTorch goes back to
the inputs and forms no gradient of a weight and no norm; the norms of layers with several positions
need products of matrices besides. Measured on one thread, kept in ``bench/results``; with
``--quick`` or ``--only`` only in a folder that is named.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from memtools_kernels import outer_norms
from memtools_kernels.outer_norms import direct_cost, gram_cost
from torch import Tensor
from torch.nn import functional as F

import memtools
from bench import steps
from bench.kept import RESULTS, circumstances, keep, show
from bench.problems import PROBLEMS, Problem
from bench.timing import FULL, QUICK, Effort, Make, Timing, in_turn
from bench.training import Training


class Row(NamedTuple):
    """A problem and a way; the fields are the columns."""

    problem: str
    way: str
    ratio: float
    """Time over that of a plain pass, or of a training step, in the same round: median."""
    ratio_p20: float
    ratio_p80: float
    rounds: int
    milliseconds: float


def to_the_inputs(problem: Problem) -> None:
    """A forward pass, and a backward pass of the summed loss that ends at the inputs alone."""
    inputs = problem.inputs.detach().requires_grad_()
    losses = F.cross_entropy(problem.model(inputs), problem.targets, reduction="sum")
    torch.autograd.grad(losses, inputs)


def products(problem: Problem) -> Callable[[], None] | None:
    """The products of matrices in the norms of linear layers, and nothing else; in hot caches."""
    seen: list[tuple[Tensor, Tensor]] = []

    def noted(rows: Tensor, columns: Tensor) -> Tensor:
        if rows.shape[1] > 1:
            seen.append((rows.clone(), columns.clone()))
        return outer_norms(rows, columns)

    with patch("memtools.gradients.pieces.outer_norms", noted):
        steps.parameters(problem)
    pairs = []
    for rows, columns in seen:
        sizes = rows.shape[1], rows.shape[2], columns.shape[2]
        of_rows, of_columns = (rows, rows.mT), (columns, columns.mT)
        direct = direct_cost(*sizes) <= gram_cost(*sizes)
        pairs += [(rows.mT, columns)] if direct else [of_rows, of_columns]

    def run() -> None:
        for a, b in pairs:
            torch.bmm(a, b)

    return run if pairs else None


def passes(problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Both norms beside the pass that they need, in plain passes."""
    ways = {"pass to the inputs": to_the_inputs, "both norms": steps.both}
    ways["parameter norms"] = steps.parameters
    others: dict[str, Make] = {
        name: lambda way=way: partial(way, problem) for name, way in ways.items()
    }
    alone = products(problem)
    if alone is not None:
        others["products of matrices"] = lambda: alone
    return in_turn(partial(steps.plain, problem), others, effort)


def training(problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Watching beside a step that has the gradient of its inputs as well, in plain steps."""
    alone, tracked, other = (Training(problem) for _ in range(3))
    tracked.inputs = problem.inputs.detach().requires_grad_()

    def step_with_inputs() -> None:
        tracked.inputs.grad = None
        tracked.step()

    with memtools.watch(other.model) as watched:
        others = {
            "step with the inputs' gradient": lambda: step_with_inputs,
            "watched step": lambda: lambda: other.step(watched),
        }
        return in_turn(alone.step, others, effort)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floors")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--only", choices=PROBLEMS, metavar="PROBLEM", help="this problem alone")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.only)
    folder = arguments.results or (RESULTS if whole else None)
    effort = QUICK if arguments.quick else FULL._replace(fewest=9)

    torch.set_num_threads(1)
    about = circumstances() | {"quick": arguments.quick}
    show(Row._fields)
    rows = []
    for name in [arguments.only] if arguments.only else PROBLEMS:
        problem = PROBLEMS[name]()
        if not problem.inputs.is_floating_point():
            continue
        for timings in (passes(problem, effort), training(problem, effort)):
            for way, t in timings.items():
                if way:
                    rows.append(Row(name, way, t.ratio, t.p20, t.p80, t.rounds, 1000 * t.seconds))
                    show(rows[-1])
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "floors.csv", Row, rows)
        (folder / "floors.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes a table of it")


if __name__ == "__main__":
    main()
