"""Every setting of the memorization study."""

import os
from dataclasses import dataclass, field
from typing import Any

__all__ = ["IMAGES", "Config"]


def _setting(default: Any, help: str, **extra: Any) -> Any:
    return field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True)
class Config:
    """Every setting of the study; :meth:`suited` has defaults that suit the data set and model."""

    dataset: str = _setting("digits", "digits, fashion-mnist, mnist, cifar10, or folder")
    data_dir: str | None = _setting(None, "where the files of the data set are (./data)")
    download: bool = _setting(False, "download the data set if it is not there")
    train_size: int | None = _setting(None, "training examples, drawn at random (all)")
    validation_size: int | None = _setting(None, "examples held out (all)")
    image_size: int = _setting(32, "side to which the images of a folder are resized, in pixels")
    data_seed: int = _setting(0, "fixes which examples are drawn and held out")
    seeds: tuple[int, ...] = _setting((0, 1, 2), "one network per seed and condition")
    model: str = _setting("mlp", "mlp, tiny-mlp or small-alexnet")
    width: int = _setting(256, "units (mlp) or channels (small-alexnet) of a hidden layer")
    depth: int = _setting(2, "hidden layers (mlp) or convolutions (small-alexnet)")
    dropout: float = _setting(0.0, "probability of dropping a hidden unit (not tiny-mlp)")
    epochs: int = _setting(50, "times through the training set")
    batch_size: int = _setting(64, "examples of an update")
    learning_rate: float = _setting(0.1, "step size of SGD")
    momentum: float = _setting(0.9, "momentum of SGD")
    weight_decay: float = _setting(0.0, "weight decay of SGD")
    label_noise: str = _setting(
        "uniform", "random labels: of all classes (uniform), of the others (other), or permuted"
    )
    input_statistics: str = _setting(
        "all", "random inputs have mean and variance of all values, of each channel, or element"
    )
    radius: float = _setting(
        1 / 16, "half-width of the box of a critical sample; inputs are in [0, 1]"
    )
    csr_steps: int = _setting(10, "steps of the search for critical samples")
    csr_examples: int = _setting(
        200, "examples searched, of the training set and of those held out"
    )
    device: str = _setting("auto", "cpu, cuda, cuda:1, mps, or auto")
    precision: str = _setting("float32", "float32, float64, bfloat16 or float16 (autocast)")
    threads: int = _setting(1, "CPU threads; small networks are fastest on one")

    @classmethod
    def suited(cls, **settings: Any) -> "Config":
        """The defaults for the data set and the model that are named, changed by what is given."""
        dataset = settings.get("dataset", "digits")
        defaults = {} if dataset == "digits" else dict(IMAGES)
        if dataset == "folder":  # it may hold fewer
            del defaults["train_size"], defaults["validation_size"]
        if settings.get("model") in WIDTHS:
            defaults["width"] = WIDTHS[settings["model"]]
        return cls(**defaults | settings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if self.data_dir is not None:
            # Absolute, so that the run can be resumed from anywhere.
            path = os.path.abspath(os.path.expanduser(self.data_dir))
            object.__setattr__(self, "data_dir", path)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different numbers, got {list(self.seeds)}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds must lie in 0..2**63 - 1, got {list(self.seeds)}")
        for name, choices in (
            ("label_noise", ("uniform", "other", "permuted")),
            ("input_statistics", ("all", "channel", "element")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "csr_steps", "csr_examples", "threads", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "radius"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


IMAGES: dict[str, Any] = {
    "train_size": 5000,
    "validation_size": 2000,
    "width": 512,
    "epochs": 100,
    "batch_size": 64,
    "learning_rate": 0.02,
    "radius": 8 / 255,
}
"""Defaults for sets larger than the digits: a subset that a CPU can train on."""

WIDTHS = {"tiny-mlp": 16, "small-alexnet": 200}
"""The paper's widths, where they are the default; its MLP has 4096 units."""
