"""What the page of the study of early stopping has of its own."""

from typing import Any

from memtools.report.critical import of_search
from memtools.report.figures.early_stopping import FIGURES
from memtools.studies.data import Data
from memtools.studies.early_stopping import Config
from memtools.studies.early_stopping.config import CONDITIONS
from memtools.studies.early_stopping.rules import LABEL_FREE
from memtools.studies.folder import RunFolder

__all__ = ["FIGURES", "contents"]


def contents(folder: RunFolder, config: Config, data: Data) -> dict[str, Any]:
    """What ``early-stopping.html.j2`` shows beside figures, tables and settings."""
    for_rules = len(data.validation) // 2
    return {
        "galleries": [],
        **of_search(config, data),
        "for_rules": for_rules,
        "searched": min(config.csr_examples, for_rules),
        "test_size": len(data.validation) - for_rules,
        "verdicts": 3 * len(LABEL_FREE) * len(CONDITIONS),
    }
