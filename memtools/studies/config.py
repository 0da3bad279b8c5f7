"""The settings that studies share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

__all__ = ["Settings", "setting"]


def setting(default: Any, help: str) -> Any:
    """A field of :class:`Settings` with its line of ``--help``."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What every study needs to know; each adds its own."""

    others: ClassVar[dict[str, Any]] = {}
    """Defaults for data sets other than the digits, where they differ."""

    quick: ClassVar[dict[str, Any]] = {}
    """Defaults of ``--quick``, where they differ: minutes for all studies."""

    full: ClassVar[dict[str, Any]] = {}
    """Defaults of ``--full``, where they differ: the paper's sizes, for a GPU."""

    dataset: str = setting("digits", "digits, fashion-mnist, mnist, cifar10, or folder")
    data_dir: str | None = setting(None, "where the files of the data set are (./data)")
    download: bool = setting(False, "download the data set if it is not there")
    train_size: int | None = setting(None, "training examples, drawn at random (all)")
    image_size: int = setting(32, "side to which the images of a folder are resized, in pixels")
    data_seed: int = setting(0, "fixes which examples are drawn and held out")
    seeds: tuple[int, ...] = setting((0, 1, 2), "one network per seed and condition")
    epochs: int = setting(50, "times through the training set")
    batch_size: int = setting(64, "examples of an update")
    learning_rate: float = setting(0.1, "step size of SGD")
    label_noise: str = setting(
        "uniform", "random labels: of all classes (uniform), of the others (other), or permuted"
    )
    input_statistics: str = setting(
        "all", "random inputs have mean and variance of all values, of each channel, or element"
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, mps, or auto")
    threads: int = setting(1, "CPU threads; small networks are fastest on one")

    @classmethod
    def suited(cls, size: str = "default", **settings: Any) -> Self:
        """The defaults for the data set that is named, changed by what is given.

        Args:
            size: ``"default"``, ``"quick"`` or ``"full"``.
            **settings: What is to be different.

        Returns:
            The configuration.

        Raises:
            ValueError: If a setting is out of range.
        """
        defaults = {} if settings.get("dataset", "digits") == "digits" else dict(cls.others)
        defaults |= {"default": {}, "quick": cls.quick, "full": cls.full}[size]
        if settings.get("dataset") == "folder":  # it may hold fewer
            defaults |= {
                name: None for name in ("train_size", "validation_size") if name in names(cls)
            }
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
        self._one_of("label_noise", ("uniform", "other", "permuted"))
        self._one_of("input_statistics", ("all", "channel", "element"))
        self._at_least_one("epochs", "batch_size", "threads", "image_size")
        self._positive("learning_rate")

    def as_json(self) -> dict[str, Any]:
        """Every setting by name, as JSON takes it."""
        values = {name: getattr(self, name) for name in names(type(self))}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def _one_of(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
            )

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def names(config: type[Settings]) -> list[str]:
    """Names of the settings of a study."""
    return [f.name for f in fields(config)]
