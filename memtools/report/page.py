"""One self-contained HTML page for a run folder."""

import base64
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from memtools.extras import require
from memtools.files import write_text
from memtools.report import csr, memorization, mislabels, sensitivity
from memtools.report.drawing import draw_figures
from memtools.studies.config import Settings
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.summary import Summary

__all__ = ["write_report"]

PAGES: dict[str, Any] = {
    "memorization": memorization,
    "sensitivity": sensitivity,
    "csr": csr,
    "mislabels": mislabels,
}
"""What is a study's own on its page: ``FIGURES``, and a template filled in with ``contents``."""


def write_report(folder: RunFolder, config: Settings, data: Data, summary: Summary) -> Path:
    """Draw the figures and write ``report.html``, which needs no other file and no network.

    Args:
        folder: The finished run folder.
        config: Its settings.
        data: Its data, for the pictures of examples.
        summary: What it came to.

    Returns:
        Path of the page.
    """
    jinja2 = require("jinja2")
    study = folder.config["study"]
    own = PAGES[study]
    figures = folder.path / "figures"
    draw_figures(own.FIGURES, summary.outcomes, figures)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(f"{study}.html.j2").render(
        dataset=config.dataset,
        train_size=len(data.train),
        config=config,
        sentences=[sentence.split(": ", 1) for sentence in summary.sentences],
        tables=summary.tables,
        figures=[(figure, _svg_uri(figures / f"{figure.name}.svg")) for figure in own.FIGURES],
        settings={name: json.dumps(value) for name, value in folder.config["settings"].items()},
        meanings={setting.name: setting.metadata["help"] for setting in fields(config)},
        versions=folder.config["versions"],
        device=folder.config["device"],
        **own.contents(folder, config, data),
    )
    path = folder.path / "report.html"
    write_text(path, page)
    return path


def _svg_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
