"""What the page of the sensitivity study has of its own."""

from typing import Any

from memtools.report.figures.sensitivity import FIGURES
from memtools.report.thumbnails import extremes
from memtools.studies.cells import Cell
from memtools.studies.conditions import REAL
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.sensitivity import Config
from memtools.studies.sensitivity.config import SCORE

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``sensitivity.html.j2`` shows beside figures, tables and settings."""
    cell = Cell(REAL, config.seeds[0], "classes")
    return {
        "class_names": data.split.class_names,
        "galleries": [(cell.condition, *extremes(folder, cell, SCORE, data.train, data))],
    }
