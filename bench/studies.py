"""What every study came to: kept from finished runs, and put on one page."""

import json
import shutil
from pathlib import Path
from typing import Any

from bench.gradient_norms_report import table
from memtools.report.joined import SHOWN, FinishedRun, claims_of, read_runs

RESULTS = Path(__file__).parent / "results" / "studies"


def keep(folder: Path, config: dict[str, Any]) -> None:
    """Keep what a run folder says of itself, and its first figures."""
    kept = RESULTS / f"{config['study']}-{config['settings']['dataset']}"
    shutil.rmtree(kept, ignore_errors=True)
    (kept / "figures").mkdir(parents=True)
    (kept / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("summary.json", "verdicts.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, kept / name)
    for name, *_ in json.loads((folder / "summary.json").read_text())["figures"][:SHOWN]:
        shutil.copyfile(folder / "figures" / f"{name}.png", kept / "figures" / f"{name}.png")


def page() -> str:
    """For ``docs/studies.md``."""
    runs = read_runs([RESULTS])
    parts = [_claims(runs)]
    parts += [_section(run) for run in runs]
    return "\n\n".join(parts)


def compact() -> str:
    """For the main README."""
    return _claims(read_runs([RESULTS]), "docs/studies.md")


def _claims(runs: list[FinishedRun], document: str = "") -> str:
    rows = [
        [
            claim,
            sentence,
            "<br>".join(
                f"**{words}**: [{run.title}]({document}#{run.anchor})" for run, words, _ in outcomes
            ),
        ]
        for claim, sentence, outcomes in claims_of(runs)
        if claim != "ours"
    ]
    head = ["claim", "in words", "statements, by study and data"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _section(run: FinishedRun) -> str:
    settings = run.config["settings"]
    lines = [
        f'<a id="{run.anchor}"></a>',
        "",
        f"## {run.summary['question']}",
        "",
        f"`memtools study {run.config['study']}` on {settings['dataset']}, "
        f"{run.summary['train_size']:,} training examples, {len(settings['seeds'])} seeds; "
        f"[all settings](../bench/results/studies/{run.path.name}/config.json). torch "
        f"{run.config['versions']['torch']}, {run.config['device']}, commit "
        f"{run.config['commit'][:7]}.",
        "",
        *(f"- **{topic}:** {text}" for topic, text in run.sentences),
        "",
    ]
    for name, title, caption in run.summary["figures"][:SHOWN]:
        picture = f"../bench/results/studies/{run.path.name}/figures/{name}.png"
        lines += [
            f'<img src="{picture}" width="420" alt="{title}">',
            "",
            f"*{title}* {caption}",
            "",
        ]
    if run.table is not None:
        lines += [
            f"<details><summary>{len(run.verdicts)} statements, each with its verdict</summary>",
            "",
            table(list(run.table.columns), run.table.rows),
            "",
            "</details>",
        ]
    return "\n".join(lines).rstrip()
