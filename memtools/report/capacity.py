"""What the page of the study of capacity has of its own."""

from typing import Any

from memtools.report.figures.capacity import FIGURES
from memtools.studies.capacity import Config
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``capacity.html.j2`` shows beside figures, tables and settings."""
    return {
        "galleries": [],
        "held_out": len(data.validation),
        "updates": config.epochs * -(-len(data.train) // config.batch_size),
    }
