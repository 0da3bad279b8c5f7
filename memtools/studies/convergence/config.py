"""Every setting of the study of convergence."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.ensembles import EnsembleSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "Does noise need more time to be fitted as data grow or the network shrinks?"

FEWEST = 10
"""Training examples below which a share such as one half is too coarse."""


@dataclass(frozen=True)
class Config(EnsembleSettings):
    """Every setting of the study; the defaults are ours, but for plain SGD.

    Sizes, widths and step size are such that networks fit even random labels within the epochs,
    with room to spare, and real data not within a few: a time is a whole number of epochs.
    """

    others: ClassVar[dict[str, Any]] = {
        "train_size": 4000,
        "widths": (32, 64, 128, 256),
        "epochs": 500,
    }
    quick: ClassVar[dict[str, Any]] = {
        "sizes": (60, 120, 240),
        "widths": (32, 64, 128),
        "seeds": (0, 1, 2),
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "sizes": (1000, 2000, 5000, 10_000, 20_000, 50_000),
        "widths": (256, 512, 1024, 2048, 4096),
        "learning_rate": 0.01,
        "epochs": 1000,
    }

    train_size: int | None = setting(None, "examples that training sets are drawn from (all)")
    validation_size: int | None = setting(200, "examples held out")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one network per seed and kind of data")
    sizes: tuple[int, ...] = setting(
        (125, 250, 500, 1000), "numbers of training examples, with the largest width"
    )
    widths: tuple[int, ...] = setting(
        (64, 128, 256, 512), "units (mlp) or channels of a layer, with the largest number"
    )
    epochs: int = setting(600, "times through the training set at most")
    batch_size: int = setting(32, "examples of an update")
    momentum: float = setting(0.0, "momentum of SGD")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, fewest in (("sizes", FEWEST), ("widths", 1)):
            values = tuple(sorted(getattr(self, name)))
            object.__setattr__(self, name, values)
            if len(set(values)) < max(len(values), 2):
                raise ValueError(f"{name} must be at least two different numbers, got {values}")
            if values[0] < fewest:
                raise ValueError(f"{name} must be at least {fewest}, got {values[0]}")

    def points(self) -> list[tuple[int, int]]:
        """Number of examples and width of each network: the largest of one, any of the other."""
        by_size = [(size, self.widths[-1]) for size in self.sizes]
        return by_size + [(self.sizes[-1], width) for width in self.widths[:-1]]
