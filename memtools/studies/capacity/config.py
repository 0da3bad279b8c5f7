"""Every setting of the study of capacity."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.ensembles import EnsembleSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "Does a network have to be wider to do its best when some of its examples are noise?"


@dataclass(frozen=True)
class Config(EnsembleSettings):
    """Every setting of the study; the defaults are ours.

    A width suffices if its best held-out accuracy is within ``tolerance`` of the best of all
    widths. Both are shares of the same held-out examples, so their difference is uncertain by about
    the square root of (share of examples on which the networks differ) / (examples held out):
    1 point for 359 digits and networks that differ on 4% of them. A tolerance below that follows
    chance, one far above it calls every width sufficient. The widths must reach from
    one that does not suffice without noise to one beyond which nothing is gained with noise, and
    training must be long enough for narrow networks to come to their best.
    """

    others: ClassVar[dict[str, Any]] = {
        "validation_size": 2000,
        "learning_rate": 0.02,
        "epochs": 60,
    }
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 500,
        "seeds": (0, 1, 2),
        "widths": (4, 8, 16, 32, 64, 128),
        "shares": (0.2, 0.4, 0.6, 0.8),
        "epochs": 60,
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "validation_size": None,
        "widths": (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 0.01,
    }

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one network per seed, width and noise")
    epochs: int = setting(
        100, "times through the full training set; smaller ones take just as many updates"
    )
    every: int = setting(2, "epochs from one evaluation to the next; the last always has one")
    batch_size: int = setting(50, "examples of an update")
    learning_rate: float = setting(0.05, "step size of SGD")
    widths: tuple[int, ...] = setting(
        (4, 8, 16, 32, 64, 128, 256), "units (mlp) or channels (small-alexnet) of a hidden layer"
    )
    shares: tuple[float, ...] = setting(
        (0.2, 0.4, 0.6, 0.8), "shares of the examples that are random, or removed, beside none"
    )
    tolerance: float = setting(
        0.02, "held-out accuracy by which a width may be worse than the best and still suffice"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("widths", int), ("shares", float)):
            values = tuple(sorted(kind(value) for value in getattr(self, name)))
            object.__setattr__(self, name, values)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different numbers, got {list(values)}")
        self._at_least_one("every")
        self._positive("tolerance")
        if len(self.widths) < 2 or self.widths[0] < 1:
            raise ValueError(f"widths must be at least two, from 1 up, got {list(self.widths)}")
        if not 0 < self.shares[0] <= self.shares[-1] < 1:
            raise ValueError(f"shares must lie between 0 and 1, got {list(self.shares)}")

    @property
    def levels(self) -> tuple[float, ...]:
        """Shares of noise from none up."""
        return (0.0, *self.shares)
