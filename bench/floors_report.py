"""The table of ``python -m bench.floors``: what of the price of gradient norms could be saved."""

import json

from bench.gradient_norms_report import number, table
from bench.kept import RESULTS, Record, by_two

PASSES = ("pass to the inputs", "products of matrices", "parameter norms", "both norms")
STEPS = ("step with the inputs' gradient", "watched step")


def page() -> str:
    about = json.loads((RESULTS / "floors.json").read_text())
    found = by_two(RESULTS / "floors.csv", "problem", "way")

    def cell(ways: dict[str, Record], way: str) -> str:
        if way not in ways:
            return "none"
        ratio, low, high = (ways[way][key] for key in ("ratio", "ratio_p20", "ratio_p80"))
        return f"{number(ratio)} ({number(low)} to {number(high)})"

    rows = [[name, *(cell(ways, way) for way in (*PASSES, *STEPS))] for name, ways in found.items()]
    head = ["", *PASSES[:2], *(f"memtools, {way}" for way in PASSES[2:]), STEPS[0], STEPS[1]]
    return "\n\n".join(
        [
            table(head, rows),
            "The first four beside a plain pass, the last two beside a plain training step; median "
            "over the rounds, 20th and 80th percentile in brackets. "
            f"torch {about['torch']}, {about['threads']} thread of {about['processor']}, commit "
            f"{about['commit'][:7]}.",
        ]
    )
