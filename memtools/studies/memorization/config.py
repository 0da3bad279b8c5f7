"""Every setting of the memorization study."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.networks import SearchSettings

__all__ = ["QUESTION", "Config"]

QUESTION = (
    "What happens differently while a network learns real data, random labels and random inputs?"
)


@dataclass(frozen=True)
class Config(SearchSettings):
    """Every setting of the study; :meth:`suited` has defaults that suit the data set and model."""

    # A subset of the larger sets that a CPU can train on.
    others: ClassVar[dict[str, Any]] = {
        "train_size": 5000,
        "validation_size": 2000,
        "width": 512,
        "epochs": 100,
        "learning_rate": 0.02,
        "radius": 8 / 255,
    }
    quick: ClassVar[dict[str, Any]] = {"train_size": 500, "epochs": 30, "csr_examples": 100}
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "validation_size": None,
        "width": 4096,
        "epochs": 1000,
        "momentum": 0.0,
        "learning_rate": 0.01,
        "batch_size": 128,
    }
