"""The matrix: every operation by memtools, by plain PyTorch, and by other tools, in turn.

``python -m bench.matrix [--quick] [--only OPERATION] [--results FOLDER]``: measure on one thread,
print, and keep the results in ``bench/results``; with ``--quick`` or ``--only`` they are kept only
in a folder that is named. ``--quick`` takes the sizes of the tests, and nothing that is compiled.
"""

import argparse
import gc
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.cases.operation import Operation, checked, versions
from bench.cases.table import OPERATIONS, OURS
from bench.gradient_norms import RESULTS, Row, circumstances, keep, show
from bench.memory import peak_of_fork
from bench.timing import QUICK, Effort, Make, in_turn

EFFORT = Effort(share=0.5, fewest=5, few=2)
COMPILED = "torch.compile"


def measured(
    name: str, operation: Operation, size: int, ways: Sequence[str], effort: Effort
) -> list[Row]:
    """All ways to an operation: checked against float64, timed in turn, then their memory."""
    problem = operation.build(size)
    expected = operation.oracle(problem)
    rows, makes = [], {}
    for way in ways:
        outcome = checked(operation, problem, expected, way)
        rows.append(
            Row(name, way, outcome.status, relative_error=outcome.error, message=outcome.message)
        )
        if outcome.run is not None:
            makes[way] = outcome.run
    if OURS not in makes:
        return rows
    others: dict[str, Make] = {
        way: lambda run=run: run for way, run in makes.items() if way != OURS
    }
    # Other programs run on such a machine, and what they take is not ours.
    timings = in_turn(makes[OURS], others, effort, time.process_time)
    timings[OURS] = timings.pop("")
    return [
        row.timed(timings[row.tool])._replace(memory_mib=peak_of_fork(makes[row.tool]))
        if row.tool in makes
        else row
        for row in rows
    ]


def about() -> dict[str, Any]:
    """Where and with what was measured, and what the operations are."""
    found = circumstances() | {"peers": versions(), "device": "cpu", "clock": "CPU time"}
    del found["wrong_above"]
    return found | {
        "operations": {
            name: {"what": operation.what, "wrong_above": operation.tolerance}
            for name, operation in OPERATIONS.items()
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.matrix")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--only", choices=OPERATIONS, metavar="OPERATION", help="this one alone")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.only)
    folder = arguments.results or (RESULTS if whole else None)

    warnings.simplefilter("ignore")  # other tools' use of deprecated functions
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    found = about() | {"quick": arguments.quick}
    show(Row._fields)
    rows = []
    for name in [arguments.only] if arguments.only else OPERATIONS:
        operation = OPERATIONS[name]
        size = operation.sizes.small if arguments.quick else operation.sizes.full
        ways = [way for way in operation.ways if not (arguments.quick and way == COMPILED)]
        for row in measured(name, operation, size, ways, QUICK if arguments.quick else EFFORT):
            show(row)
            rows.append(row)
        gc.collect()  # some tools leave cycles, which hold gradients of all examples
        torch.compiler.reset()
    found["seconds"] = round(time.perf_counter() - start)
    print(f"{found['seconds']} s")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / "matrix.csv", Row, rows)
        (folder / "matrix.json").write_text(json.dumps(found, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes the tables of it")


if __name__ == "__main__":
    main()
