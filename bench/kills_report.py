"""The table of what was killed, and of what that changed."""

import json
from typing import Any

from bench.kept import RESULTS
from bench.killed import ALL_WHOLE, BY_CLOCK, BY_OPERATION, HALF_WRITTEN, NOTHING_YET

COLUMNS = {
    "kills": lambda job: sum(job["kills"].values()),
    BY_CLOCK: lambda job: job["kills"][BY_CLOCK],
    BY_OPERATION: lambda job: job["kills"][BY_OPERATION],
    NOTHING_YET: lambda job: job["fell"][NOTHING_YET],
    HALF_WRITTEN: lambda job: job["fell"][HALF_WRITTEN],
    ALL_WHOLE: lambda job: job["fell"][ALL_WHOLE],
    "runs": lambda job: job["runs"],
    "files of a run": lambda job: job["files"],
    "lost, doubled or different": lambda job: len(job["differences"]),
}


def page() -> str:
    found: dict[str, Any] = json.loads((RESULTS / "kills.json").read_text())
    lines = [f"| job | {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * len(COLUMNS)]
    for job in found["jobs"].values():
        cells = [str(of(job)) for of in COLUMNS.values()]
        lines.append(f"| {job['what']} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"torch {found['torch']}, {found['threads']} thread of {found['processor']}, commit "
            f"{found['commit'][:7]}.",
        ]
    )
