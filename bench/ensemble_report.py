"""The table of many small trainings."""

import json
from typing import Any

from bench.kept import RESULTS

COLUMNS = ("plain loop", "loop", "vmap", "fused", "auto")


def page() -> str:
    found = json.loads((RESULTS / "ensemble.json").read_text())
    lines = [
        "| members | " + " | ".join(COLUMNS) + " | auto beside the plain loop |",
        "| --- |" + " ---: |" * (len(COLUMNS) + 1),
    ]
    for case in found["cases"]:
        best = {column: fastest(case, column) for column in COLUMNS}
        cells = [f"{t['median']:.0f} ({t['p20']:.0f} to {t['p80']:.0f})" for t in best.values()]
        gain = best["plain loop"]["median"] / best["auto"]["median"]
        lines.append(f"| {case['members']}, {case['name']} | {' | '.join(cells)} | {gain:.1f}x |")
    first = found["cases"][0]
    return "\n".join(
        [
            *lines,
            "",
            "Microseconds for an update of one member (median, 20 % and 80 % of "
            f"{first['rounds']} rounds in turn): MLPs with two hidden layers, batches of "
            f"{first['batch']} out of {first['examples']:,} examples, SGD with momentum. Each "
            "with the number of threads, and the plain loop with the `foreach`, that suits it "
            "best; auto finds that out itself, which counts. "
            f"torch {found['torch']}, up to {found['threads']} threads of {found['processor']}, "
            f"commit {found['commit'][:7]}.",
        ]
    )


def fastest(case: dict[str, Any], column: str) -> dict[str, float]:
    """Of all ways to run one, the fastest."""
    times = case["microseconds"]
    names = [name for name in times if name == column or name.startswith(f"{column}, ")]
    return min((times[name] for name in names), key=lambda t: t["median"])
