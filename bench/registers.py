"""What every operator's launches need of a GPU, from a compiler; no GPU is needed.

``python -m bench.registers [--results FOLDER]``: compile them all, print, and keep the results in
``bench/results``.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton

from bench.kept import RESULTS, keep, show
from bench.launches import launches

COMPILED_WITH = {"torch": torch.__version__, "triton": triton.__version__}


class Row(NamedTuple):
    """A kernel of a launch, compiled for a GPU; the fields are the columns."""

    operator: str
    launch: str
    target: str
    kernel: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    atomics: bool
    wide_loads: bool


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.registers")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS)
    folder = parser.parse_args().results
    from bench import aot

    show(Row._fields)
    rows = []
    with tempfile.TemporaryDirectory() as cache, patch.dict("os.environ", TRITON_CACHE_DIR=cache):
        for launch in launches():
            for name, target in aot.TARGETS.items():
                with aot.compile_only(target) as kernels:
                    launch.call()
                for kernel in kernels:
                    found = aot.resources(kernel)
                    row = Row(launch.operator, launch.case, name, kernel.metadata.name, *found)
                    show(row)
                    rows.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder / "registers.csv", Row, rows)
    (folder / "registers.json").write_text(json.dumps(COMPILED_WITH, indent=2) + "\n")
    print("kept in", folder, "- python -m bench.readme makes the tables of it")


if __name__ == "__main__":
    main()
