"""The table of an hour of training that was watched."""

import json
import math

from bench.gradient_norms_report import table
from bench.kept import RESULTS
from bench.long_run import BLOCKS, SECONDS, WARM_UP

QUANTITIES = {
    "resident_mib": ("resident memory", "MiB", 1),
    "open_files": ("open files", "", 1),
    "objects": ("Python objects", "", 0),
    "cpu_milliseconds": ("CPU time of a step", "ms", 2),
}


def page() -> str:
    """For ``bench/README.md``."""
    found = json.loads((RESULTS / "long_run.json").read_text())
    rows = []
    for key, (title, unit, digits) in QUANTITIES.items():
        slope = found["slopes"][key]
        gain = "nothing"
        if math.isfinite(slope["low"]):  # what never changed has no interval
            per_hour, low, high = (slope[name] for name in ("per_hour", "low", "high"))
            gain = f"{per_hour:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
        rows.append([title, f"{slope['mean']:,.{digits}f} {unit}".strip(), gain])
    return "\n\n".join(
        [
            table(["", "mean", "gained in an hour (95% interval)"], rows),
            f"{found['minutes']:.0f} minutes, {found['steps']:,} steps, {found['looks']:,} looks, "
            f"one every {SECONDS:g} seconds or more. Slopes by least squares over the means of "
            f"{BLOCKS} blocks, without the first {WARM_UP:.0%} of the time. torch "
            f"{found['torch']}, {found['threads']} thread of {found['processor']}, commit "
            f"{found['commit'][:7]}.",
        ]
    )
