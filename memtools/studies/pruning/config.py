"""Every setting of the study of pruning."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.conditions import REAL, Condition
from memtools.studies.config import setting
from memtools.studies.ensembles import EnsembleSettings

__all__ = ["CONDITIONS", "QUESTION", "Config"]

QUESTION = (
    "Does a network generalise better when the examples on which its training depends most are "
    "thrown out?"
)

CONDITIONS = (
    REAL,
    *(
        Condition(f"random-labels-{share}", f"{share}% random labels", labels=share / 100)
        for share in (10, 20, 40)
    ),
)
"""What is trained on: real labels, and a share of them replaced."""


@dataclass(frozen=True)
class Config(EnsembleSettings):
    """Every setting of the study; all defaults are ours.

    Random labels are of another class, so that each of them is wrong: then a score can find all of
    them, and dropping as many examples as were corrupted can drop just these.

    The scoring network is trained by plain SGD at a rate at which the derivative through the
    training neither vanishes nor explodes; the networks that are compared have momentum and enough
    updates to learn their examples by heart, wrong labels included, where a choice of examples
    matters most.
    """

    others: ClassVar[dict[str, Any]] = {
        "train_size": 1000,
        "validation_size": 5000,
        "epochs": 60,
        "scoring_learning_rate": 0.05,
        "shares": (0.1, 0.2, 0.4),
        "window_positions": (0.0, 0.25, 0.5),
    }
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 500,
        "seeds": (0, 1, 2),
        "epochs": 40,
        "scoring_epochs": 20,
        "shares": (0.1, 0.2, 0.4),
        "window_positions": (0.0, 0.25, 0.5),
        "random_draws": 3,
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": 10_000,
        "validation_size": None,
        "epochs": 100,
        "seeds": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        "shares": (0.1, 0.2, 0.3, 0.4, 0.6),
        "window_positions": (0.0, 0.125, 0.25, 0.375, 0.5),
    }

    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4), "one scoring network, and one of each subset, per seed and condition"
    )
    label_noise: str = setting(
        "other", "random labels: of the other classes (other), of all (uniform), or permuted"
    )
    epochs: int = setting(
        100, "times through the full training set; subsets take just as many updates"
    )
    learning_rate: float = setting(0.05, "step size of SGD, for the networks that are compared")
    momentum: float = setting(0.9, "momentum of SGD, for the networks that are compared")
    width: int = setting(64, "units (mlp) or channels (small-alexnet) of a hidden layer")
    standardize: bool = setting(
        True, "take the mean of all pixels off the inputs and divide by their standard deviation"
    )
    scoring_epochs: int = setting(40, "times through the training set for the scoring network")
    scoring_learning_rate: float = setting(0.1, "step size of plain SGD for the scoring network")
    scoring_every: int = setting(
        2, "scoring epochs from one evaluation of the loss sensitivity to the next"
    )
    shares: tuple[float, ...] = setting(
        (0.1, 0.2, 0.3, 0.4, 0.6), "shares of the examples that are dropped"
    )
    headline_share: float = setting(
        0.2, "share that verdicts are about where the noisy share is not among shares"
    )
    window_width: float = setting(0.5, "share of the examples in a sliding window")
    window_positions: tuple[float, ...] = setting(
        (0.0, 0.125, 0.25, 0.375, 0.5), "where windows begin: share of the examples that are easier"
    )
    random_draws: int = setting(5, "random subsets of each size; their mean is compared with")
    margin: float = setting(
        0.01, "held-out accuracy by which dropping the easiest may be worse and still no worse"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shares", "window_positions"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different numbers, got {list(values)}")
        self._at_least_one("width", "scoring_epochs", "scoring_every", "random_draws")
        self._positive("scoring_learning_rate", "margin")
        for share in self.shares:
            if not 0 < share < 1:
                raise ValueError(f"shares must lie between 0 and 1, got {share}")
        if self.headline_share not in self.shares:
            raise ValueError(
                f"headline_share must be one of shares {list(self.shares)}, got "
                f"{self.headline_share}"
            )
        if not 0 < self.window_width < 1:
            raise ValueError(f"window_width must lie between 0 and 1, got {self.window_width}")
        for position in self.window_positions:
            if not 0 <= position <= 1 - self.window_width + 1e-9:
                raise ValueError(
                    f"window_positions must lie between 0 and {1 - self.window_width:.4g}, for a "
                    f"window_width of {self.window_width}, got {position}"
                )

    def evaluated(self) -> list[int]:
        """The scoring epochs after which the loss sensitivity is evaluated."""
        epochs = range(self.scoring_every, self.scoring_epochs + 1, self.scoring_every)
        return sorted({*epochs, self.scoring_epochs})

    def judged_share(self, condition: Condition) -> float:
        """The share that verdicts are about: as much as is noise, or the headline share."""
        return condition.labels if condition.labels in self.shares else self.headline_share
