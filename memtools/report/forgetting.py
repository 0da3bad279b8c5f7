"""What the page of the study of forgetting has of its own."""

from typing import Any

from memtools.report.figures.forgetting import FIGURES
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.forgetting import Config
from memtools.studies.forgetting.tasks import tasks_of

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``forgetting.html.j2`` shows beside figures, tables and settings."""
    tasks = tasks_of(config, data, config.seeds[0])
    sizes = {phase: (len(task.train), len(task.validation)) for phase, task in tasks.items()}
    return {"galleries": [], "sizes": sizes, "classes": len(data.split.class_names)}
