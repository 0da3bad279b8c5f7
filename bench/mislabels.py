"""How well each score finds wrong labels: kept from finished studies, and put in a table."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.gradient_norms_report import table
from memtools.studies.folder import read_parquet
from memtools.studies.mislabels.methods import METHODS, auroc, precision

RESULTS = Path(__file__).parent / "results" / "mislabels"


def keep(folder: Path, config: dict[str, Any]) -> None:
    """Keep the areas and precisions of a run folder, one of each for each seed."""
    tables = [read_parquet(path) for path in sorted((folder / "examples").glob("*.parquet"))]
    pairs = [(t, np.not_equal(t["label"], t["clean_label"])) for t in tables]
    scores = {
        method: {
            "auroc": [round(auroc(t, method, wrong), 6) for t, wrong in pairs],
            "precision": [round(precision(t, method, wrong), 6) for t, wrong in pairs],
        }
        for method in METHODS
        if all(METHODS[method].column in t for t in tables)
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"{config['settings']['dataset']}.json"
    kept.write_text(json.dumps(config | {"scores": scores}, indent=2) + "\n")


def part() -> str:
    """For the main README."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    means = [
        {method: np.mean(found["auroc"]) for method, found in run["scores"].items()} for run in runs
    ]
    ranked = sorted(means[-1], key=lambda method: -means[-1][method])
    heads = [""]
    for run in runs:
        heads += [f"{run['settings']['dataset']}: AUROC", "wrong among the most suspect"]
    rows = []
    for method in ranked:
        row = [METHODS[method].title]
        for run in runs:
            areas, shares = (run["scores"][method][key] for key in ("auroc", "precision"))
            row += [
                f"{np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f})",
                f"{np.mean(shares):.0%}",
            ]
        rows.append(row)
    settings = runs[-1]["settings"]
    sizes = ", ".join(
        f"{run['settings']['dataset']} ({run['settings']['train_size'] or 'all'} examples)"
        for run in runs
    )
    return "\n".join(
        [
            table(heads, rows),
            "",
            f"Means over {len(settings['seeds'])} seeds, lowest to highest in brackets; "
            f"{settings['noise']:.0%} of the labels wrong; {sizes}; MLP, {settings['epochs']} "
            f"epochs; {settings['folds']} folds of {settings['fold_epochs']} epochs for what is "
            f"held out. torch {runs[-1]['versions']['torch']}, {runs[-1]['device']}, commit "
            f"{', '.join(dict.fromkeys(run['commit'][:7] for run in runs))}.",
        ]
    )
