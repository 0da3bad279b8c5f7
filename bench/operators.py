"""The operators' CPU code beside naive eager code.

``python -m bench.operators [--quick] [--results FOLDER]``: measure on one thread, print, and keep
the results in ``bench/results``; with ``--quick`` they are kept only in a folder that is named.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from bench.kept import RESULTS, circumstances, keep, show
from bench.operator_problems import Problem, off_by, on_cpu, small, widened
from bench.timing import FULL, QUICK, Effort, in_turn

WRONG = 1e-5
"""Half of float32's digits; sums of thousands of terms keep more."""


class Row(NamedTuple):
    """An operator on a size; the fields are the columns."""

    operator: str
    size: str
    status: str
    """``ok`` or ``wrong``, by comparison with float64."""
    error: float | None
    ratio: float
    """Time over that of naive eager code in the same round: median, 20th and 80th percentile."""
    ratio_p20: float
    ratio_p80: float
    rounds: int
    microseconds: float


def measured(problem: Problem, effort: Effort) -> Row:
    inputs = problem.make(torch.device("cpu"))
    error = None
    if problem.gives_same:
        error = off_by(problem.ours(*inputs), problem.naive(*widened(inputs)))
    timing = in_turn(
        partial(problem.naive, *inputs), {"ours": lambda: partial(problem.ours, *inputs)}, effort
    )["ours"]
    status = "ok" if error is None or error <= WRONG else "wrong"
    return Row(problem.operator, problem.name, status, error, timing.ratio, timing.p20, timing.p80,
               timing.rounds, timing.seconds * 1e6)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.operators")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)

    torch.set_num_threads(1)
    start = time.perf_counter()
    about = circumstances() | {"quick": arguments.quick, "wrong_above": WRONG}
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    show(Row._fields)
    rows = []
    for problem in small() if arguments.quick else on_cpu():
        rows.append(measured(problem, QUICK if arguments.quick else FULL))
        show(rows[-1])
    about["seconds"] = round(time.perf_counter() - start)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "operators.csv", Row, rows)
        (folder / "operators.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes the tables of it")


if __name__ == "__main__":
    main()
