"""Which lines and branches the tests reach, by package: kept from what coverage.py measured.

``python -m bench.covered [TEST ...] [--data FILE] [--results FILE]``, after
``coverage run -m pytest -q TEST ...`` and ``coverage combine``: sum up and keep in
``bench/results``, with the tests that were run (all, if none is named). What is not reached,
``coverage report -m`` shows line by line.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.kept import RESULTS, circumstances
from memtools.files import write_text


def main(arguments: list[str] | None = None) -> int:
    """Sum up, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.covered")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="what was run, if not all")
    parser.add_argument("--data", default=".coverage", metavar="FILE", help="of coverage.py")
    parser.add_argument("--results", type=Path, default=RESULTS / "coverage.json", metavar="FILE")
    given = parser.parse_args(arguments)
    kept: dict[str, Any] = {key: circumstances()[key] for key in ("commit", "python", "torch")}
    kept |= {"tests": given.tests or ["all"], "packages": packages(given.data)}
    for name, counts in kept["packages"].items():
        print(f"{counts['percent']:6.1f}%  {name}")
    write_text(given.results, json.dumps(kept, indent=2) + "\n")
    return 0


def packages(data: str) -> dict[str, dict[str, float]]:
    """Lines and branches, and how many are reached, by package or module of the top level."""
    import coverage  # of the extra `dev`; who runs the tests need not have it

    measured = coverage.Coverage(data_file=data)
    measured.load()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        measured.json_report(outfile=report.name)
        files = json.load(report)["files"]
    sums: dict[str, dict[str, float]] = {}
    for path, found in sorted(files.items()):
        counts = sums.setdefault(package_of(path), {})
        for key, name in {
            "num_statements": "lines",
            "covered_lines": "lines_reached",
            "num_branches": "branches",
            "covered_branches": "branches_reached",
        }.items():
            counts[name] = counts.get(name, 0) + found["summary"][key]
    for counts in sums.values():
        reached = counts["lines_reached"] + counts["branches_reached"]
        every = counts["lines"] + counts["branches"]
        counts["percent"] = round(100 * reached / every, 2) if every else 100.0
    return sums


def package_of(path: str) -> str:
    """``memtools.scores`` for a file of that folder, ``memtools.pruning`` for the file itself."""
    parts = Path(path).with_suffix("").parts
    start = max(i for i, part in enumerate(parts) if part in ("memtools", "memtools_kernels"))
    inside = parts[start : start + 2]
    return ".".join(part for part in inside if part != "__init__")


if __name__ == "__main__":
    sys.exit(main())
