"""Every setting of the sensitivity study."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import Settings, setting

__all__ = ["QUESTION", "SCORE", "Config"]

QUESTION = (
    "How much does the training as a whole depend on each single example, and on how few of them?"
)

SCORE = "loss_sensitivity"
"""Column of ``examples/`` with the sensitivity of an example, mean over the evaluation times."""


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of the study.

    The paper gives the network, the 14x14 images and their number; the other defaults are ours.
    Learning rates are such that no evaluation time dominates the mean. With rates several times
    higher networks still learn, but the derivative through their training grows by powers of ten.
    """

    quick: ClassVar[dict[str, Any]] = {"train_size": 400, "seeds": (0, 1, 2)}

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting((0, 1, 2, 3, 4), "one network per seed, task and condition")
    epochs: int = setting(40, "times through the training set")
    batch_size: int = setting(50, "examples of an update")
    own_class_learning_rate: float = setting(
        0.15, "step size of SGD where every example is its own class, which takes longer to learn"
    )
    every: int = setting(2, "epochs from one evaluation time to the next; the last is always one")
    width: int = setting(16, "units of a hidden layer")
    depth: int = setting(2, "hidden layers")
    standardize: bool = setting(
        True, "take the mean of all pixels off the inputs and divide by their standard deviation"
    )
    precision: str = setting("float32", "float32 or float64")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("precision", ("float32", "float64"))
        self._at_least_one("every", "width", "depth")
        self._positive("own_class_learning_rate")

    def evaluated(self) -> list[int]:
        """The epochs after which the sensitivity is evaluated."""
        return sorted({*range(self.every, self.epochs + 1, self.every), self.epochs})
