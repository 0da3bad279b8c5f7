"""Every setting of the study of regularisation."""

from dataclasses import dataclass
from typing import Any, ClassVar

from memtools.studies.config import setting
from memtools.studies.ensembles import EnsembleSettings
from memtools.studies.regularization.regularizers import ADVERSARIAL, NONE, REGULARIZERS

__all__ = ["QUESTION", "Config"]

QUESTION = (
    "Which way of regularising a network keeps it from memorising random labels without costing "
    "accuracy on real data?"
)


@dataclass(frozen=True)
class Config(EnsembleSettings):
    """Every setting of the study; strengths span the paper's ranges, all other defaults are ours.

    Without regularisation a network has to have learnt the random labels in the end, or there is
    nothing to be kept from; that sets epochs and width. The learning rate is one at which networks
    with strong dropout still train, as far as they do at all. The network without
    regularisation is always trained and is strength 0 of every regulariser, also of dropout with
    adversarial training, whose dropout of 0 is adversarial training alone.

    The paper gives no unit of its noise: here that on the inputs is in standard deviations of all
    training inputs (theirs may have been standardised), that on hidden units in their own. It gives
    neither radius nor schedule of its adversarial training: here a share of each batch is replaced
    by the critical points that LASS finds around it, with the labels of the examples. A search of
    many examples costs little more than one of few, so one is made for several batches to come.
    """

    others: ClassVar[dict[str, Any]] = {
        "validation_size": 2000,
        "epochs": 60,
        "learning_rate": 0.01,
        "adversarial_radius": 8 / 255,
    }
    quick: ClassVar[dict[str, Any]] = {
        "train_size": 200,
        "seeds": (0, 1, 2),
        "epochs": 60,
        "batch_size": 20,
        "learning_rate": 0.06,
        "dropouts": (0.25, 0.5),
        "input_dropouts": (0.1, 0.25, 0.5),
        "input_noises": (0.5, 1.0, 2.0),
        "hidden_noises": (0.1, 0.3),
        "weight_decays": (0.001, 0.01, 0.1),
        "adversarial_dropouts": (0.25, 0.5),
        "adversarial_every": 10,
    }
    full: ClassVar[dict[str, Any]] = {
        "train_size": None,
        "validation_size": None,
        "width": 4096,
        "epochs": 1000,
        "learning_rate": 0.01,
    }

    train_size: int | None = setting(1000, "training examples, drawn at random")
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4), "two networks, real and random labels, per seed and strength"
    )
    epochs: int = setting(120, "times through the training set")
    batch_size: int = setting(32, "examples of an update")
    learning_rate: float = setting(0.03, "step size of SGD")
    width: int = setting(128, "units (mlp) or channels (small-alexnet) of a hidden layer")
    dropouts: tuple[float, ...] = setting(
        (0.1, 0.25, 0.5, 0.75, 0.9), "probabilities of dropping a hidden unit, beside 0"
    )
    input_dropouts: tuple[float, ...] = setting(
        (0.1, 0.25, 0.5, 0.75, 0.9), "probabilities of dropping an input, beside 0"
    )
    input_noises: tuple[float, ...] = setting(
        (0.25, 0.5, 1.0, 2.0, 5.0), "standard deviations of noise on the inputs, beside 0"
    )
    input_noise_units: str = setting(
        "std", "their unit: standard deviation of all training inputs (std), or that of the inputs"
    )
    hidden_noises: tuple[float, ...] = setting(
        (0.05, 0.1, 0.2, 0.3),
        "standard deviations of noise on hidden units, in their own unit, beside 0",
    )
    weight_decays: tuple[float, ...] = setting(
        (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0), "weight decays of SGD, beside 0"
    )
    adversarial_dropouts: tuple[float, ...] = setting(
        (0.0, 0.25, 0.5, 0.75), "probabilities of dropping a hidden unit, with critical points"
    )
    adversarial_share: float = setting(
        0.5, "share of a batch that is replaced by critical points, where there are any"
    )
    adversarial_radius: float = setting(
        1 / 16, "half-width of the box of a critical point; inputs are in [0, 1]"
    )
    adversarial_steps: int = setting(5, "steps of the search for critical points (LASS)")
    adversarial_every: int = setting(
        8, "updates from one search to the next, each around the examples of all batches till then"
    )
    tolerance: float = setting(
        0.01, "accuracy on real data, below that of no regularisation, at which is compared"
    )

    def __post_init__(self) -> None:
        self._one_of("model", ("mlp", "small-alexnet"))
        super().__post_init__()
        self._one_of("input_noise_units", ("std", "inputs"))
        self._at_least_one("width", "adversarial_steps", "adversarial_every")
        self._positive("adversarial_radius", "tolerance")
        for name in ("dropout", "weight_decay"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} must be 0 in this study, got {getattr(self, name)}; its strengths are "
                    f"{name}s"
                )
        if not 0 < self.adversarial_share <= 1:
            raise ValueError(
                f"adversarial_share must be above 0 and at most 1, got {self.adversarial_share}"
            )
        for key, regularizer in REGULARIZERS.items():
            name = regularizer.strengths
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            most = 1.0 if name.endswith("dropouts") else float("inf")
            allowed = all(0 <= value < most for value in values) and values
            if not allowed or (key != ADVERSARIAL and 0 in values):
                raise ValueError(
                    f"{name} must be {'at least' if key == ADVERSARIAL else 'above'} 0 and less "
                    f"than {most:g}, got {list(values)}"
                )
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name} must go from weak to strong, got {list(values)}")

    def strengths(self, key: str) -> tuple[float, ...]:
        """Strengths at which a regulariser is trained; 0 for none."""
        return (0.0,) if key == NONE else getattr(self, REGULARIZERS[key].strengths)
