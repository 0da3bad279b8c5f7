"""The matrix: every operation by memtools, by plain PyTorch, and by other tools, in turn.

``python -m bench.matrix [--quick] [--only OPERATION] [--results FOLDER]``: measure on one thread,
print, and keep the results in ``bench/results`` after each operation, beside those of the others;
with ``--quick`` they are kept only in a folder that is named. ``--quick`` takes the sizes of the
tests, and nothing that is compiled.
"""

import argparse
import csv
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
from bench.gradient_norms import Row
from bench.kept import RESULTS, circumstances, keep, show
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
    """Where and with what was measured."""
    found = circumstances() | {"peers": versions(), "device": "cpu", "clock": "CPU time"}
    return found


def keep_operation(folder: Path, rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """Put the rows of an operation among those of the others that are there."""
    name, operation = rows[0].problem, OPERATIONS[rows[0].problem]
    folder.mkdir(parents=True, exist_ok=True)
    table, described = folder / "matrix.csv", folder / "matrix.json"
    of_all: dict[str, list[tuple[Any, ...]]] = {}
    operations = {}
    if table.exists() and described.exists():
        with table.open() as file:
            for row in csv.DictReader(file):
                of_all.setdefault(row["problem"], []).append(tuple(row.values()))
        operations = json.loads(described.read_text())["operations"]
    of_all[name] = list(rows)
    operations[name] = {
        "what": operation.what,
        "wrong_above": operation.tolerance,
        "commit": settings["commit"],
    }
    names = [name for name in OPERATIONS if name in of_all]
    keep(table, Row, [row for name in names for row in of_all[name]])
    found = settings | {"operations": {name: operations[name] for name in names}}
    described.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.matrix")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--only", choices=OPERATIONS, metavar="OPERATION", help="this one alone")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)

    warnings.simplefilter("ignore")  # other tools' use of deprecated functions
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = about() | {"quick": arguments.quick}
    show(Row._fields)
    for name in [arguments.only] if arguments.only else OPERATIONS:
        operation = OPERATIONS[name]
        size = operation.sizes.small if arguments.quick else operation.sizes.full
        ways = [way for way in operation.ways if not (arguments.quick and way == COMPILED)]
        rows = measured(name, operation, size, ways, QUICK if arguments.quick else EFFORT)
        for row in rows:
            show(row)
        if folder is not None:
            keep_operation(folder, rows, settings)
        gc.collect()  # some tools leave cycles, which hold gradients of all examples
        torch.compiler.reset()
    if folder is not None:
        print("kept in", folder, "- python -m bench.readme makes the tables of it")


if __name__ == "__main__":
    main()
