"""Every setting of the memorization study."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from memtools.studies.config import Settings, setting

__all__ = ["Config"]


@dataclass(frozen=True)
class Config(Settings):
    """Every setting of the study; :meth:`suited` has defaults that suit the data set and model."""

    # A subset of the larger sets that a CPU can train on.
    others: ClassVar[dict[str, Any]] = {
        "train_size": 5000,
        "validation_size": 2000,
        "width": 512,
        "epochs": 100,
        "learning_rate": 0.02,
        "radius": 8 / 255,
    }

    validation_size: int | None = setting(None, "examples held out (all)")
    model: str = setting("mlp", "mlp, tiny-mlp or small-alexnet")
    width: int = setting(256, "units (mlp) or channels (small-alexnet) of a hidden layer")
    depth: int = setting(2, "hidden layers (mlp) or convolutions (small-alexnet)")
    dropout: float = setting(0.0, "probability of dropping a hidden unit (not tiny-mlp)")
    momentum: float = setting(0.9, "momentum of SGD")
    weight_decay: float = setting(0.0, "weight decay of SGD")
    radius: float = setting(
        1 / 16, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    csr_steps: int = setting(10, "steps of the search for critical samples")
    csr_examples: int = setting(200, "examples searched, of the training set and of those held out")
    precision: str = setting("float32", "float32, float64, bfloat16 or float16 (autocast)")

    @classmethod
    def suited(cls, **settings: Any) -> Self:
        """The defaults for the data set and the model that are named, changed by what is given."""
        if settings.get("model") in WIDTHS:
            settings = {"width": WIDTHS[settings["model"]]} | settings
        return super().suited(**settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("csr_steps", "csr_examples")
        self._positive("radius")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


WIDTHS = {"tiny-mlp": 16, "small-alexnet": 200}
"""The paper's widths, where they are the default; its MLP has 4096 units."""
