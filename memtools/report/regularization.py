"""What the page of the study of regularisation has of its own."""

from typing import Any

from memtools.report.figures.regularization import FIGURES
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.regularization import Config

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``regularization.html.j2`` shows beside figures, tables and settings."""
    deviation = float(data.train.inputs.std())
    return {
        "galleries": [],
        "held_out": len(data.validation),
        "classes": len(data.split.class_names),
        "noise_unit": deviation if config.input_noise_units == "std" else 1.0,
    }
