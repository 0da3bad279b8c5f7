"""What benchmarks keep: rows, and where and with what they were measured."""

import csv
import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = [
    "RESULTS",
    "Record",
    "by_two",
    "circumstances",
    "first_words",
    "keep",
    "show",
    "versions_of",
]

RESULTS = Path(__file__).parent / "results"

Record = dict[str, str]
"""A row of a file that was kept."""


def circumstances() -> dict[str, Any]:
    """Where and with what was measured."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(describe, cwd=RESULTS, capture_output=True, text=True).stdout.strip()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "commit": commit,
    }


def versions_of(packages: Mapping[str, str]) -> dict[str, str]:
    """Versions by the names that benchmarks have for packages."""
    found = {}
    for name, package in packages.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def by_two(path: Path, first: str, second: str) -> dict[str, dict[str, Record]]:
    """The rows of a file by two of their columns."""
    found: dict[str, dict[str, Record]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row[first], {})[row[second]] = row
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def keep(path: Path, kind: type[NamedTuple], rows: Sequence[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kind._fields)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else value


def show(row: tuple[Any, ...]) -> None:
    print(*(_cell(value) for value in row), sep="\t", flush=True)


def first_words(error: BaseException) -> str:
    """Type and beginning of an error; of the last one where a tool joins several."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        inner = error.args[0][-1]
        error = inner if isinstance(inner, BaseException) else error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}".removesuffix(": ")
