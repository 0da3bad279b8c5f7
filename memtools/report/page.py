"""One self-contained HTML page for a run folder, and what a page of several studies needs."""

import base64
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from memtools.extras import require
from memtools.files import write_text
from memtools.report import (
    capacity,
    convergence,
    csr,
    early_stopping,
    easy_examples,
    forgetting,
    memorization,
    mislabels,
    pruning,
    regularization,
    sensitivity,
)
from memtools.report.drawing import draw_figures
from memtools.studies import study_of
from memtools.studies.config import Settings
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Summary

__all__ = ["svg_uri", "template", "write_report"]

PAGES: dict[str, Any] = {
    "easy-examples": easy_examples,
    "sensitivity": sensitivity,
    "capacity": capacity,
    "convergence": convergence,
    "csr": csr,
    "regularization": regularization,
    "forgetting": forgetting,
    "pruning": pruning,
    "early-stopping": early_stopping,
    "mislabels": mislabels,
    "memorization": memorization,
}
"""What is a study's own on its page: ``FIGURES``, and a template filled in with ``contents``."""


def write_report(folder: RunFolder, config: Settings, data: Data, summary: Summary) -> Path:
    """Draw the figures and write ``report.html``, which needs no other file and no network.

    Beside it comes ``summary.json``, from which pages of several studies are made.

    Args:
        folder: The finished run folder.
        config: Its settings.
        data: Its data, for the pictures of examples.
        summary: What it came to.

    Returns:
        Path of the page.
    """
    study = folder.config["study"]
    own = PAGES[study]
    figures = folder.path / "figures"
    draw_figures(own.FIGURES, summary.outcomes, figures)
    page = template(study).render(
        dataset=config.dataset,
        train_size=len(data.train),
        config=config,
        sentences=[sentence.split(": ", 1) for sentence in summary.sentences],
        tables=summary.tables,
        figures=[(figure, svg_uri(figures / f"{figure.name}.svg")) for figure in own.FIGURES],
        settings={name: json.dumps(value) for name, value in folder.config["settings"].items()},
        meanings={setting.name: setting.metadata["help"] for setting in fields(config)},
        versions=folder.config["versions"],
        device=folder.config["device"],
        **own.contents(folder, config, data),
    )
    of_page = {
        "question": study_of(config).QUESTION,
        "train_size": len(data.train),
        "sentences": summary.sentences,
        "figures": [[figure.name, figure.title, figure.caption] for figure in own.FIGURES],
    }
    write_text(folder.path / "summary.json", json.dumps(of_page, indent=2) + "\n")
    path = folder.path / "report.html"
    write_text(path, page)
    return path


def template(name: str) -> Any:
    """A page to be filled in; what comes from outside is escaped, and nothing may be missing."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(f"{name}.html.j2")


def svg_uri(path: Path) -> str:
    """A figure as a data URI: as a picture, an SVG runs no script and fetches nothing."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
