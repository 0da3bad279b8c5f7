"""Every setting of the study of easy examples."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.ensembles import EnsembleSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "Do networks that start differently agree on which examples are easy?"


@dataclass(frozen=True)
class Config(EnsembleSettings):
    """Every setting of the study.

    The paper gives the number of networks and the one epoch; the other defaults are ours. After so
    few updates networks have to be right more often than by chance, and not always: that is what
    batch size and learning rate are for.
    """

    others: ClassVar[dict[str, Any]] = {
        "train_size": 2000,
        "validation_size": 1000,
        "learning_rate": 0.02,
    }
    quick: ClassVar[dict[str, Any]] = {"train_size": 600, "seeds": (0, 1, 2), "width": 64}
    full: ClassVar[dict[str, Any]] = {"train_size": None, "validation_size": None, "width": 4096}

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one set of networks per seed and condition")
    networks: int = setting(100, "networks of a set; they differ in weights and order")
    epochs: int = setting(1, "times through the training set")
    width: int = setting(256, "units of a hidden layer")
    batch_size: int = setting(32, "examples of an update")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.networks < 2:
            raise ValueError(f"networks must be at least 2, got {self.networks}")
