"""The table of ``kernels/README.md``: what every operator is, and what was measured of it."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.gradient_norms_report import Record, number, table

RESULTS = Path(__file__).parent / "results"
ON_CPU, CPU_SETTINGS = RESULTS / "operators.csv", RESULTS / "operators.json"
COMPILED, COMPILED_SETTINGS = RESULTS / "registers.csv", RESULTS / "registers.json"
TARGET = "sm_90"


class Operator(NamedTuple):
    """What an operator is good for; b is the bytes of an element."""

    instead: str
    traffic: str
    operations: str
    floor: str


OPERATORS = {
    "row_norms": Operator(
        "`x.flatten(1).abs().sum(1)` and the like, `torch.cat` before them", "b n d", "2 n d",
        "bandwidth: one read",
    ),
    "box_step": Operator(
        "sign, multiply, `randn`, add, clamp", "5 b n d", "4 n d; 60 n d with noise",
        "bandwidth: four reads, one write",
    ),
    "logit_scores": Operator(
        "`cross_entropy`, `softmax`, `argmax`, `scatter`, a score each",
        "b n C; 3 b n C with gradients", "12 n C", "bandwidth: one read",
    ),
    "outer_norms": Operator(
        "`bmm` to (n, R, C), square, sum", "b n T (R + C)",
        "2 n T R C, or n T^2 (R + C) if that is less", "matrix product",
    ),
    "patch_norms": Operator(
        "`unfold`, `bmm`, square, sum", "b n (C pixels + O T)",
        "2 n T O C k, or n T^2 (O + C k) if that is less", "matrix product",
    ),
    "lookup_norms": Operator(
        "`scatter_add_` into (n, V, d), square, sum", "n T (b d + 16)", "4 n T d",
        "bandwidth: one read, and a sort of the indices",
    ),
    "lookup_dots": Operator(
        "both gradients as (n, V, d), multiply, sum", "b n (S d + T d + S T)", "2 n S T d",
        "matrix product",
    ),
    "gini": Operator(
        "`sort`, ranks, two sums in float64", "b k n, after the sort", "5 k n",
        "the sort; then bandwidth: one read",
    ),
}  # fmt: skip


def _records(path: Path) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            found[row["operator"]].append(row)
    return found


def _ratio(value: str | float) -> str:
    return f"{float(value):.2g}"


def _range(values: list[str]) -> str:
    ordered = sorted(int(value) for value in values)
    return f"{ordered[0]} to {ordered[-1]}" if ordered[0] < ordered[-1] else f"{ordered[0]}"


def operators() -> str:
    """For ``kernels/README.md``."""
    on_cpu, compiled = _records(ON_CPU), _records(COMPILED)
    settings = json.loads(CPU_SETTINGS.read_text())
    built = json.loads(COMPILED_SETTINGS.read_text())
    lines = []
    for name, operator in OPERATORS.items():
        kernels = [row for row in compiled[name] if row["target"] == TARGET]
        ratios = [float(row["ratio"]) for row in on_cpu[name]]
        lines.append(
            [
                f"`{name}`",
                *operator,
                _range([row["registers"] for row in kernels]),
                _range([row["shared_bytes"] for row in kernels]),
                _ratio(median(ratios)),
                "not yet measured",
            ]
        )
    head = [
        "operator", "in place of", "least traffic, bytes", "operations", "floor",
        f"registers, {TARGET}", "shared memory, bytes", "CPU: time / eager", "GPU",
    ]  # fmt: skip
    worst = [row for rows in compiled.values() for row in rows]
    spills = sum(int(row["spill_bytes"]) for row in worst)
    atomics = sum(row["atomics"] == "True" for row in worst)
    targets = ", ".join(sorted({row["target"] for row in worst}))
    return "\n\n".join(
        [
            table(head, lines),
            f"{len(worst)} kernels of {len({row['launch'] for row in worst})} launches compiled "
            f"for {targets} by triton {built['triton']}: {spills} bytes spilled, {atomics} with "
            "atomic operations; all of them are in [registers.csv](../bench/results/registers.csv)."
            f" CPU: median over the sizes below, torch {settings['torch']}, "
            f"{settings['threads']} thread of {settings['processor']}, commit "
            f"{settings['commit'][:7]}.",
            _by_size(on_cpu),
        ]
    )


def _by_size(on_cpu: dict[str, list[Record]]) -> str:
    lines = []
    for name in OPERATORS:
        for row in on_cpu[name]:
            spread = f"{_ratio(row['ratio_p20'])} to {_ratio(row['ratio_p80'])}"
            lines.append(
                [
                    f"`{name}`",
                    row["size"],
                    f"{number(row['ratio'])} ({spread})",
                    number(row["microseconds"]),
                ]
            )
    head = ["operator", "size", "time / eager (20th to 80th percentile)", "microseconds"]
    return table(head, lines)
