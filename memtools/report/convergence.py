"""What the page of the study of convergence has of its own."""

from typing import Any

from memtools.report.figures.convergence import FIGURES
from memtools.studies.convergence import Config
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``convergence.html.j2`` shows beside figures, tables and settings."""
    return {"galleries": []}
