"""Every setting of the study of early stopping."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.conditions import REAL, Condition
from memtools.studies.config import setting
from memtools.studies.networks import SearchSettings

__all__ = ["CONDITIONS", "QUESTION", "Config"]

QUESTION = (
    "Can one tell, without examples that are known to be labelled right, when a network begins to "
    "learn wrong labels by heart?"
)

CONDITIONS = (
    REAL,
    *(
        Condition(f"random-labels-{share}", f"{share}% random labels", labels=share / 100)
        for share in (20, 40, 60)
    ),
)
"""What is trained on."""


@dataclass(frozen=True)
class Config(SearchSettings):
    """Every setting of the study; the defaults are ours.

    The learning rate is low enough for the best epoch to come after the first few, and the training
    long enough for accuracy to fall well below it with random labels; otherwise every rule is as
    good as any other. Half of the held-out examples are for rules to choose by, half for judging
    the choice; each seed has halves of its own.
    """

    others: ClassVar[dict[str, Any]] = {"validation_size": 4000, "radius": 2 / 255}
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 300,
        "seeds": (0, 1, 2),
        "epochs": 40,
        "learning_rate": 0.05,
        "width": 128,
        "csr_examples": 100,
        "csr_steps": 5,
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": 10_000,
        "validation_size": None,
        "seeds": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        "width": 1024,
        "csr_examples": 2000,
    }

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one network per seed and noise")
    epochs: int = setting(80, "times through the training set")
    batch_size: int = setting(32, "examples of an update")
    learning_rate: float = setting(0.02, "step size of SGD")
    radius: float = setting(
        1 / 32, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    few_labels: int = setting(50, "held-out labels of the rule that has few of them")
    smoothing: int = setting(
        5, "epochs over which a curve is averaged before a rule without labels looks at it; odd"
    )
    margin: float = setting(
        0.01, "test accuracy by which a rule may be worse than validation and still as good"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("few_labels", "smoothing")
        self._positive("margin")
        if self.smoothing % 2 == 0:
            raise ValueError(f"smoothing must be odd, got {self.smoothing}")
        if self.epochs < 2:
            raise ValueError(f"epochs must be at least 2 to choose from, got {self.epochs}")
