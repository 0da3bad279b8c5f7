"""Every setting of the study of wrong labels."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.networks import NetworkSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "Which score, taken down while a network trains, finds the examples with a wrong label?"


@dataclass(frozen=True)
class Config(NetworkSettings):
    """Every setting of the study; the defaults are ours."""

    others: ClassVar[dict[str, Any]] = {
        "train_size": 10_000,
        "validation_size": 2000,
        "width": 512,
        "learning_rate": 0.02,
    }
    quick: ClassVar[dict[str, Any]] = {"train_size": 800, "folds": 3}
    full: ClassVar[dict[str, Any]] = {"train_size": None, "validation_size": None, "width": 4096}

    noise: float = setting(0.1, "share of the training labels that are wrong")
    label_noise: str = setting(
        "other", "wrong labels: another class (other), any class (uniform), or permuted"
    )
    epochs: int = setting(20, "times through the training set")
    folds: int = setting(5, "parts of the cross-validation for confident learning")
    fold_epochs: int = setting(10, "times through the training set for each of its networks")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise < 1:
            raise ValueError(f"noise must lie between 0 and 1, got {self.noise}")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        self._at_least_one("fold_epochs")
