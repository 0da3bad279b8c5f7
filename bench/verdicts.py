"""The verdicts that finished studies came to, kept and put in a table."""

import json
from pathlib import Path
from typing import Any

from bench.gradient_norms_report import table

RESULTS = Path(__file__).parent / "results" / "verdicts"


def keep(folder: Path, config: dict[str, Any]) -> None:
    """Keep the verdicts of a run folder, beside those of other settings."""
    verdicts = json.loads((folder / "verdicts.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"{_name(config['settings'])}.json"
    kept.write_text(json.dumps(config | {"verdicts": verdicts}, indent=2) + "\n")


def part() -> str:
    """For the main README."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows = [
        [
            f"{first['claim']}: {first['statement']}",
            *(_cell(run["verdicts"][number]) for run in runs),
        ]
        for number, first in enumerate(runs[0]["verdicts"])
    ]
    heads = [
        "{dataset}, learning rate {learning_rate:g}, {epochs} epochs".format(**run["settings"])
        for run in runs
    ]
    commits = ", ".join(dict.fromkeys(run["commit"][:7] for run in runs))
    seeds = " or ".join(sorted({str(len(run["settings"]["seeds"])) for run in runs}))
    return "\n".join(
        [
            table(["", *heads], rows),
            "",
            f"Mean over {seeds} seeds and 95% Student-t interval of the number in brackets. torch "
            f"{runs[0]['versions']['torch']}, {runs[0]['device']}, commit {commits}.",
        ]
    )


def _name(settings: dict[str, Any]) -> str:
    return "{dataset}-lr{learning_rate:g}-epochs{epochs}".format(**settings)


def _cell(verdict: dict[str, Any]) -> str:
    word = verdict["verdict"]
    if verdict["low"] is None:
        return word
    numbers = f"{verdict['effect']:+.2f} ({verdict['low']:+.2f} to {verdict['high']:+.2f})"
    return f"{word}, {numbers}" if word == "holds" else f"**{word}**, {numbers}"
