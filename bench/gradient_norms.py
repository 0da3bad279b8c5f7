"""Norms of every example's gradient: time, memory and error of memtools and of other tools.

``python -m bench.gradient_norms [--quick] [--only PROBLEM] [--results FOLDER]``: measure on one
thread, print, and keep the results in ``bench/results``; with ``--quick`` or ``--only`` they are
kept only in a folder that is named.
"""

import argparse
import copy
import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench import steps
from bench.kept import RESULTS, circumstances, first_words, keep, show, versions_of
from bench.memory import peak_mib
from bench.peers import PEERS
from bench.problems import PROBLEMS, Problem
from bench.timing import FULL, QUICK, Effort, Make, Timing, in_turn
from bench.training import CHECKED_STEPS, cost_of_watching, same_weights

# In float32, a loop over the examples is honestly off by up to 6e-5 in the norms of the parameter
# gradients (by 1.7e-4 in those of the inputs); the smallest omission that was seen makes 8e-4.
WRONG = 2e-4
PACKAGES = {"opacus": "opacus", "backpack": "backpack-for-pytorch", "captum": "captum"}


class Row(NamedTuple):
    """Result of a tool on a problem; the field names are the columns of the file."""

    problem: str
    tool: str
    status: str = "ok"
    """``ok``, ``wrong``, ``refuses`` or ``absent``."""
    ratio: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    rounds: int | None = None
    seconds: float | None = None
    relative_error: float | None = None
    memory_mib: float | None = None
    message: str = ""

    def timed(self, timing: Timing) -> "Row":
        ratio, p20, p80, seconds, rounds = timing
        return self._replace(
            ratio=ratio, ratio_p20=p20, ratio_p80=p80, rounds=rounds, seconds=seconds
        )


def by_name(name: str) -> Problem:
    return PROBLEMS[name]()


def checked(problem: Problem) -> Iterator[tuple[Row, Callable[[], object]]]:
    """How right each tool is, and a call of it: memtools first, then the peers."""
    of_weights, of_inputs = steps.reference(problem)
    ours = {
        "parameters": (steps.parameters, [of_weights]),
        "both": (steps.both, [of_weights, of_inputs]),
        "inputs": (steps.inputs, [of_inputs]),
    }
    if not problem.inputs.is_floating_point():
        del ours["inputs"]
    for name, (tool, wanted) in ours.items():
        row = Row(problem.name, f"memtools {name}")
        yield _compared(row, tool(problem), wanted), partial(tool, problem)
    for name, prepare in PEERS.items():
        row, run = Row(problem.name, name), _nothing
        try:
            run = prepare(problem)
            row = _compared(row, [run()], [of_weights])
        except ImportError as error:
            row = row._replace(status="absent", message=str(error))
        except Exception as error:
            row = row._replace(status="refuses", message=first_words(error))
        yield row, run


def _nothing() -> None:
    """In place of a tool that could not be prepared."""


def _compared(row: Row, norms: Sequence[Tensor], wanted: Sequence[Tensor]) -> Row:
    errors = [((a - b).abs() / b).max() for a, b in zip(norms, wanted, strict=True)]
    error = float(torch.stack(errors).max())
    right = error <= WRONG  # not so for NaN
    return row._replace(relative_error=error, status="ok" if right else "wrong")


def timed(problem: Problem, effort: Effort) -> list[Row]:
    """Rows of all tools: the plain pass first, the first call of memtools last."""
    found = list(checked(problem))
    others: dict[str, Make] = {
        row.tool: lambda run=run: run for row, run in found if row.relative_error is not None
    }
    others["memtools both, first call"] = lambda: partial(
        steps.both, problem._replace(model=copy.deepcopy(problem.model))
    )
    timings = in_turn(partial(steps.plain, problem), others, effort)
    timings["plain"] = timings.pop("")
    rows = [Row(problem.name, "plain"), *(row for row, _ in found)]
    rows += [Row(problem.name, "memtools both, first call")]
    return [row.timed(timings[row.tool]) if row.tool in timings else row for row in rows]


def with_memory(row: Row) -> Row:
    tools = {"plain": steps.plain, "memtools both": steps.both}
    if row.tool not in tools:
        return row
    return row._replace(memory_mib=peak_mib(by_name, row.problem, tools[row.tool]))


def watched(problem: Problem, effort: Effort) -> list[Row]:
    timings = cost_of_watching(problem, effort)
    same = same_weights(problem, timings[""].seconds)
    row = Row(problem.name, "watch", "ok" if same else "wrong").timed(timings["watch"])
    row = row._replace(message="" if same else f"other weights after {CHECKED_STEPS} steps")
    return [Row(problem.name, "training step").timed(timings[""]), row]


def peers() -> dict[str, str]:
    """The version of each."""
    return versions_of(PACKAGES) | {"fastdp": "retyped from its public source, norms only"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gradient_norms")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--only", choices=PROBLEMS, metavar="PROBLEM", help="this problem alone")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.only)
    folder = arguments.results or (RESULTS if whole else None)
    effort = QUICK if arguments.quick else FULL

    warnings.simplefilter("ignore")  # other tools' use of deprecated functions
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    about = circumstances()
    about |= {"peers": peers(), "wrong_above": WRONG, "quick": arguments.quick}
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    show(Row._fields)
    rows = []
    for name in [arguments.only] if arguments.only else PROBLEMS:
        problem = by_name(name)
        found = timed(problem, effort)
        found = [*map(with_memory, found), *watched(problem, effort)]
        for row in found:
            show(row)
        rows += found
        gc.collect()  # some tools leave cycles, which hold gradients of all examples
    about["seconds"] = round(time.perf_counter() - start)
    print(f"{about['seconds']} s")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "gradient_norms.csv", Row, rows)
        (folder / "gradient_norms.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes tables and figure of it")


if __name__ == "__main__":
    main()
