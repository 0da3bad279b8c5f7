"""One self-contained HTML page for a run folder."""

import base64
import json
from pathlib import Path

from memtools.critical import NOISE_OVER_RADIUS, STEP_OVER_RADIUS
from memtools.extras import require
from memtools.files import write_text
from memtools.report.figures import FIGURES, draw_figures
from memtools.report.thumbnails import extremes
from memtools.studies.folder import RunFolder
from memtools.studies.memorization import Config, Data
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.summary import COLUMNS, Summary

__all__ = ["write_report"]

SHOWN = ("random-labels-40", "real")
THUMBNAILS = 12


def write_report(folder: RunFolder, config: Config, data: Data, summary: Summary) -> Path:
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
    figures = folder.path / "figures"
    draw_figures(summary.outcomes, figures)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    has_pictures = len(data.split.input_shape) == 3 and data.split.input_shape[0] in (1, 3)
    galleries = [
        (condition, *extremes(folder, config, data, condition, THUMBNAILS))
        for condition in CONDITIONS
        if has_pictures and condition.key in SHOWN
    ]
    galleries.sort(key=lambda gallery: SHOWN.index(gallery[0].key))
    settings = folder.config["settings"]
    page = environment.get_template("page.html.j2").render(
        dataset=config.dataset,
        train_size=len(data.train),
        config=config,
        sizes=summary.sizes,
        step_over_radius=STEP_OVER_RADIUS,
        noise_over_radius=NOISE_OVER_RADIUS,
        sentences=[sentence.split(": ", 1) for sentence in summary.sentences],
        columns=COLUMNS,
        table=summary.table,
        figures=[(figure, _svg_uri(figures / f"{figure.name}.svg")) for figure in FIGURES],
        galleries=galleries,
        settings={name: json.dumps(value) for name, value in settings.items()},
        meanings={f.name: f.metadata["help"] for f in Config.__dataclass_fields__.values()},
        versions=folder.config["versions"],
        device=folder.config["device"],
    )
    path = folder.path / "report.html"
    write_text(path, page)
    return path


def _svg_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
