"""Every setting of the study of critical samples."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.networks import SearchSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "How close do decision boundaries come to examples while a network learns noise?"


@dataclass(frozen=True)
class Config(SearchSettings):
    """Every setting of the study; the defaults are ours.

    Networks have to fit the noise in the end, which takes many updates. A radius says something
    where neither no example is critical nor all are; the claims about rising, levelling off and
    falling depend on it.
    """

    others: ClassVar[dict[str, Any]] = {
        "validation_size": 1000,
        "width": 512,
        "batch_size": 32,
        "learning_rate": 0.02,
        "radius": 2 / 255,
        "every": 5,
    }
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 300,
        "seeds": (0, 1, 2),
        "epochs": 60,
        "every": 6,
        "width": 128,
        "csr_examples": 100,
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "validation_size": None,
        "width": 4096,
        "csr_examples": 10_000,
    }

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one network per seed and condition")
    epochs: int = setting(100, "times through the training set")
    every: int = setting(4, "epochs from one search to the next; the first and last always are")
    radius: float = setting(
        1 / 32, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    csr_examples: int = setting(300, "examples searched, of the training set and of those held out")
    search: str = setting("auto", "lass, the paper's search, or auto, a more thorough one")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("every")

    def evaluated(self) -> list[int]:
        """The epochs after which critical samples are searched."""
        return sorted({1, *range(self.every, self.epochs + 1, self.every), self.epochs})
