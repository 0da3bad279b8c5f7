"""Every setting of the study of forgetting."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.networks import NetworkSettings

__all__ = ["QUESTION", "Config"]

QUESTION = "Does a network that learns a second task forget less of the first with dropout?"


@dataclass(frozen=True)
class Config(NetworkSettings):
    """Every setting of the study; the paper gives none of them.

    Task B is by default the same examples with their inputs permuted, each seed by a permutation of
    its own: both tasks are then as hard as each other, have all classes and all examples. Splitting
    the classes makes other tasks of another difficulty; task B then has the same outputs as task A,
    whose classes it takes the place of. (With outputs of its own, a network that has learnt B never
    names a class of A, and there is nothing to compare.)

    Networks with dropout learn task B more slowly, and one that has not learnt B has forgotten
    little of A. So what is kept of A is compared while both learn B, at the same accuracy on B, as
    well as in the end; the learning rate is small and there is no momentum, so that an epoch is a
    small step there.
    """

    others: ClassVar[dict[str, Any]] = {
        "train_size": 2000,
        "validation_size": 2000,
        "learning_rate": 0.02,
    }
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 600,
        "seeds": (0, 1, 2),
        "epochs": 30,
        "dropouts": (0.5,),
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "validation_size": None,
        "width": 4096,
        "epochs": 100,
        "learning_rate": 0.01,
    }

    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), "one network per seed and dropout"
    )
    epochs: int = setting(40, "times through the training set of each task")
    batch_size: int = setting(32, "examples of an update")
    learning_rate: float = setting(0.05, "step size of SGD")
    momentum: float = setting(0.0, "momentum of SGD")
    tasks: str = setting(
        "permuted",
        "task B: the same examples with their inputs permuted (permuted), or the second half of "
        "the classes after the first (classes)",
    )
    dropouts: tuple[float, ...] = setting(
        (0.25, 0.5), "probabilities of dropping a hidden unit, beside 0"
    )
    goal: float = setting(
        0.95,
        "accuracy on task B at which what is kept of A is compared, as a share of what the network "
        "without dropout has on B in the end",
    )
    margin: float = setting(
        0.01, "accuracy on task B by which dropout may be worse in the end and still no worse"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("model", ("mlp", "small-alexnet"))
        self._one_of("tasks", ("permuted", "classes"))
        self._at_least_one("width")
        self._positive("margin")
        if not 0 < self.goal <= 1:
            raise ValueError(f"goal must be above 0 and at most 1, got {self.goal}")
        if self.dropout:
            raise ValueError(
                f"dropout must be 0 in this study, got {self.dropout}; its strengths are dropouts"
            )
        values = tuple(float(value) for value in self.dropouts)
        object.__setattr__(self, "dropouts", values)
        if not values or not all(0 < value < 1 for value in values):
            raise ValueError(f"dropouts must be above 0 and less than 1, got {list(values)}")
        if list(values) != sorted(set(values)):
            raise ValueError(f"dropouts must go from weak to strong, got {list(values)}")

    def probabilities(self) -> tuple[float, ...]:
        """All that networks are trained with, none first."""
        return (0.0, *self.dropouts)
