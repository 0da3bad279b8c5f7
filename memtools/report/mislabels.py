"""What the page of the study of wrong labels has of its own."""

from typing import Any

from memtools.report.figures.mislabels import FIGURES
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.mislabels import Config

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``mislabels.html.j2`` shows beside figures, tables and settings."""
    return {"galleries": []}
