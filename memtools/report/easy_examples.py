"""What the page of the study of easy examples has of its own."""

from typing import Any

from memtools.report.figures.easy_examples import FIGURES
from memtools.report.thumbnails import extremes
from memtools.studies.cells import Cell
from memtools.studies.conditions import REAL
from memtools.studies.data import Data
from memtools.studies.easy_examples import Config
from memtools.studies.easy_examples.experiment import SCORE
from memtools.studies.folder import RunFolder

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``easy-examples.html.j2`` shows beside figures, tables and settings."""
    cell = Cell(REAL, config.seeds[0])
    easiest, hardest = extremes(folder, cell, SCORE, data.train, data)
    return {
        "extremes": ("Easiest", "Hardest"),
        "galleries": [(REAL, easiest, hardest)],
    }
