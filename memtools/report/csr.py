"""What the page of the study of critical samples has of its own."""

from typing import Any

from memtools.report.critical import of_search
from memtools.report.figures.csr import FIGURES
from memtools.studies.csr import Config
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``csr.html.j2`` shows beside figures, tables and settings."""
    return {"galleries": [], **of_search(config, data)}
