"""What the page of the study of pruning has of its own."""

from typing import Any

from memtools.report.figures.pruning import FIGURES
from memtools.report.thumbnails import extremes
from memtools.studies.cells import Cell
from memtools.studies.data import Data, corrupt
from memtools.studies.folder import RunFolder
from memtools.studies.pruning import Config
from memtools.studies.pruning.config import CONDITIONS
from memtools.studies.pruning.methods import SENSITIVITY
from memtools.studies.pruning.subsets import subsets

__all__ = ["FIGURES", "contents"]

SHOWN = ("real", "random-labels-10")


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``pruning.html.j2`` shows beside figures, tables and settings."""
    by_key = {condition.key: condition for condition in CONDITIONS}
    shown = [Cell(by_key[key], config.seeds[0]) for key in SHOWN]
    return {
        "held_out": len(data.validation),
        "networks": sum(1 for _ in subsets(config)),
        "updates": config.epochs * -(-len(data.train) // config.batch_size),
        "galleries": [
            (
                cell.condition,
                *extremes(
                    folder,
                    cell,
                    SENSITIVITY,
                    corrupt(config, data, cell.condition, cell.seed),
                    data,
                ),
            )
            for cell in shown
        ],
    }
