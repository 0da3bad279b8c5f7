"""The tables and figures of the README files, made from ``bench/results``.

``python -m bench.readme [RUN_FOLDER ...]``: keep the results of finished studies, if any are named,
then write the generated parts anew. ``python -m bench.readme --studies DIR``: keep those of
``memtools study all``, for docs/studies.md.
"""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import (
    beside,
    critical_report,
    ensemble_report,
    floors_report,
    gradient_norms_report,
    growth_report,
    kills_report,
    ledger_report,
    long_run_report,
    matrix_report,
    mislabels,
    operators_report,
    sensitivity_report,
    studies,
    verdicts,
)
from memtools.report.drawing import canvas, save
from memtools.report.figures.memorization import FIGURES
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.summary import COLUMNS, Outcome, table_row

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
CURVES = RESULTS / "memorization.csv"
SETTINGS = RESULTS / "memorization.json"
FIGURE = RESULTS / "memorization.svg"
END = "<!-- end of generated part -->"
PANELS = ("validation-accuracy", "gini", "csr-validation")
COLUMN_NAMES = (
    "condition", "seed", "epoch", "train_accuracy", "validation_accuracy",
    "gini_of_running_mean", "csr_train", "csr_validation",
)  # fmt: skip


def config_of(folder: Path) -> dict[str, Any]:
    """What a run folder was made by, with the commit of the code that is checked out."""
    config = json.loads((folder / "config.json").read_text())
    config["settings"].pop("data_dir")  # somebody's own path
    config["commit"] = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    return config


def keep(folder: Path) -> None:
    """Copy what the README shows out of a run folder, made by the code that is checked out."""
    RESULTS.mkdir(exist_ok=True)
    config = config_of(folder)
    if config["study"] == "mislabels":
        mislabels.keep(folder, config)
        return
    if config["study"] != "memorization":
        verdicts.keep(folder, config)
        return
    rows = [
        json.loads(line)
        for path in sorted((folder / "metrics").iterdir())
        for line in path.read_text().splitlines()
    ]
    with CURVES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMN_NAMES)
        for row in rows:
            values = [row[name] for name in COLUMN_NAMES]
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])
    SETTINGS.write_text(json.dumps(config, indent=2) + "\n")


def outcomes() -> dict[str, Outcome]:
    with CURVES.open() as file:
        rows = list(csv.DictReader(file))
    seeds = sorted({int(row["seed"]) for row in rows})
    found = {}
    for condition in CONDITIONS:
        of_seed = [
            [r for r in rows if (r["condition"], int(r["seed"])) == (condition.key, seed)]
            for seed in seeds
        ]
        curves = {
            name: np.array([[float(r[name]) for r in epochs] for epochs in of_seed])
            for name in COLUMN_NAMES[2:]
        }
        found[condition.key] = Outcome(condition, curves, np.empty((0, 0)), {})
    return found


def digest() -> str:
    """What ties the figure to the results that it shows."""
    return hashlib.sha256(CURVES.read_bytes() + SETTINGS.read_bytes()).hexdigest()


def memorization_part() -> str:
    config = json.loads(SETTINGS.read_text())
    settings = config["settings"]
    table = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)]]
    table += [table_row(outcome) for outcome in outcomes().values()]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(
        [
            f"![Validation accuracy, Gini coefficient and critical sample ratio over "
            f"{settings['epochs']} epochs](bench/results/{FIGURE.name})",
            "",
            *lines,
            "",
            f"{settings['train_size']:,} examples of {settings['dataset']}, "
            f"{settings['model'].upper()} with {settings['depth']} hidden layers of "
            f"{settings['width']}, {settings['epochs']} epochs, means over "
            f"{len(settings['seeds'])} seeds (bands: lowest to highest); held-out examples are "
            f"real in every row; critical within ±{settings['radius'] * 255:.3g}/255 per pixel. "
            f"torch {config['versions']['torch']}, {config['device']}.",
        ]
    )


PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {
        "memorization": memorization_part,
        "other tools": beside.part,
        "gradient norms": gradient_norms_report.compact,
        "loss sensitivity": sensitivity_report.compact,
        "verdicts": verdicts.sensitivity_part,
        "critical samples": critical_report.compact,
        "critical samples over the training": verdicts.csr_part,
        "wrong labels": mislabels.part,
        "claims": studies.compact,
    },
    ROOT / "bench" / "README.md": {
        "matrix": matrix_report.page,
        "growth": growth_report.page,
        "gradient norms": gradient_norms_report.page,
        "floors": floors_report.page,
        "loss sensitivity": sensitivity_report.page,
        "critical samples": critical_report.page,
        "ledger": ledger_report.page,
        "many small trainings": ensemble_report.page,
        "kills": kills_report.page,
        "an hour of training": long_run_report.page,
    },
    ROOT / "kernels" / "README.md": {"operators": operators_report.operators},
    ROOT / "docs" / "studies.md": {"studies": studies.page},
}
"""What is generated, by file and name."""


def refreshed(file: Path) -> str:
    """The text of a file with its generated parts made anew."""
    text = file.read_text()
    for name, part in PARTS[file].items():
        begin = f"<!-- {name}, generated by `python -m bench.readme` -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{part()}\n{END}{rest.split(END, 1)[1]}"
    return text


def draw() -> None:
    shown = [figure for figure in FIGURES if figure.name in PANELS]
    with canvas(12, 4) as page:
        row = page.subplots(1, len(shown))
        for axes, figure in zip(row, shown, strict=True):
            figure.draw(axes, outcomes())
            axes.set_title(figure.title)
        handles, labels = row[0].get_legend_handles_labels()
        page.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        save(page, FIGURE, description=digest())


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--studies"]:
        for path in sorted(Path(words[1]).glob("*/config.json")):
            studies.keep(path.parent, config_of(path.parent))
        words = []
    for folder in words:
        keep(Path(folder))
    draw()
    gradient_norms_report.draw()
    sensitivity_report.draw()
    growth_report.draw()
    for file in PARTS:
        file.write_text(refreshed(file))


if __name__ == "__main__":
    main()
