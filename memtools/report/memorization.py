"""What the page of the memorization study has of its own."""

from typing import Any

from memtools.report.critical import of_search
from memtools.report.figures.memorization import FIGURES
from memtools.report.thumbnails import extremes
from memtools.studies.cells import Cell
from memtools.studies.data import Data, corrupt
from memtools.studies.folder import RunFolder
from memtools.studies.memorization import Config
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.recorder import NORM

__all__ = ["FIGURES", "contents"]

SHOWN = ("random-labels-40", "real")


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``memorization.html.j2`` shows beside figures, tables and settings."""
    by_key = {condition.key: condition for condition in CONDITIONS}
    cells = [Cell(by_key[key], config.seeds[0]) for key in SHOWN]
    return {
        **of_search(config, data),
        "galleries": [
            (
                cell.condition,
                *extremes(
                    folder, cell, NORM, corrupt(config, data, cell.condition, cell.seed), data
                ),
            )
            for cell in cells
        ],
    }
