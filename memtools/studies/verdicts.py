"""Verdicts in a file and in a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from memtools.files import write_text
from memtools.studies.claims import Verdict
from memtools.studies.summary import Table

__all__ = ["verdict_table", "write_verdicts"]


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write verdicts as JSON, whole or not at all."""
    text = json.dumps([asdict(verdict) for verdict in verdicts], indent=2, allow_nan=False)
    write_text(path, text + "\n")


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each verdict; where the same is stated of several things, a row above them."""
    columns = ("statement", "claim", "verdict", "effect", "95% interval", "seeds")
    rows = []
    before = None
    for verdict in verdicts:
        interval = "" if verdict.low is None else f"{verdict.low:+.3f} to {verdict.high:+.3f}"
        effect = "" if verdict.effect is None else f"{verdict.effect:+.3f}"
        numbers = [verdict.verdict, effect, interval, str(verdict.n)]
        if not verdict.about:
            rows.append([verdict.statement, verdict.claim, *numbers])
            continue
        if verdict.statement != before:
            rows.append([verdict.statement, verdict.claim, "", "", "", ""])
        rows.append([f"- {verdict.about}", "", *numbers])
        before = verdict.statement
    return Table("Verdicts", columns, rows)
