"""The verdicts that finished studies came to, kept and put in a table."""

import json
from pathlib import Path
from typing import Any

from bench.gradient_norms_report import table

RESULTS = Path(__file__).parent / "results" / "verdicts"

# What tells the kept runs of a study from each other, in file names and in heads of the table.
NAMES = {
    "sensitivity": "{dataset}-lr{learning_rate:g}-epochs{epochs}",
    "csr": "csr-{dataset}-radius{radius:.4g}-{search}",
}
HEADS = {
    "sensitivity": "{dataset}, learning rate {learning_rate:g}, {epochs} epochs",
    "csr": "{dataset}, ±{radius:.2g} per pixel, {search} search",
}


def keep(folder: Path, config: dict[str, Any]) -> None:
    """Keep the verdicts of a run folder, beside those of other settings."""
    verdicts = json.loads((folder / "verdicts.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"{NAMES[config['study']].format(**config['settings'])}.json"
    kept.write_text(json.dumps(config | {"verdicts": verdicts}, indent=2) + "\n")


def sensitivity_part() -> str:
    """For the main README."""
    return _part("sensitivity")


def csr_part() -> str:
    """For the main README."""
    return (
        f"{_part('csr')} Where a statement is about several kinds of training data: for how many "
        "of them it holds, with the lowest and the highest mean; then the others, one by one."
    )


def _part(study: str) -> str:
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    runs = [run for run in runs if run["study"] == study]
    by_statement = [_by_statement(run["verdicts"]) for run in runs]
    rows = [
        [title, *(_cell(verdicts[title]) for verdicts in by_statement)] for title in by_statement[0]
    ]
    heads = [HEADS[study].format(**run["settings"]) for run in runs]
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


def _by_statement(verdicts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Verdicts in order, those that state the same of several things together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for verdict in verdicts:
        found.setdefault(f"{verdict['claim']}: {verdict['statement']}", []).append(verdict)
    return found


def _cell(verdicts: list[dict[str, Any]]) -> str:
    """What became of one statement: a verdict, or how many of several hold and which do not."""
    if len(verdicts) == 1:
        return _one(verdicts[0])
    effects = [verdict["effect"] for verdict in verdicts if verdict["verdict"] == "holds"]
    others = [
        f"{verdict['about']}: {_one(verdict)}"
        for verdict in verdicts
        if verdict["verdict"] != "holds"
    ]
    count = f"holds for {len(effects)} of {len(verdicts)}"
    if effects:
        count += ", " + " to ".join(f"{e:+.2f}" for e in sorted({min(effects), max(effects)}))
    return "; ".join([count, *others])


def _one(verdict: dict[str, Any]) -> str:
    word = verdict["verdict"]
    if verdict["low"] is None:
        return word
    numbers = f"{verdict['effect']:+.2f} ({verdict['low']:+.2f} to {verdict['high']:+.2f})"
    return f"{word}, {numbers}" if word == "holds" else f"**{word}**, {numbers}"
