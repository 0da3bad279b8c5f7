"""What is trained, and how: the members of an ensemble and the settings that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import torch
from torch import nn

from memtools.batch import LossFunction, check_whole
from memtools.data import Tensors

__all__ = ["Engine", "Member", "Settings", "check_members"]

Engine = Literal["auto", "loop", "vmap", "fused"]
OptimizerName = Literal["sgd", "adamw"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Member:
    """One training of an ensemble: what a ``Trainer`` with this seed would do alone.

    Attributes:
        model: Moved to the device and trained in place.
        train: The training set; members may share its tensors, which are then held once.
        seed: Fixes the order of the examples, dropout and noise, as in ``Trainer``.
        learning_rate: Learning rate, the same in all epochs.
        weight_decay: In SGD added to the gradient, in AdamW taken off the weights.
    """

    model: nn.Module
    train: Tensors
    seed: int = 0
    learning_rate: float = 0.01
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Settings:
    """What all members share; see :func:`train_ensemble`."""

    epochs: int
    batch_size: int
    updates_per_epoch: int | None
    optimizer: OptimizerName
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    loss_fn: LossFunction | None
    evaluate_every: int
    stop_at_train_accuracy: float | None
    engine: Engine
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "updates_per_epoch"):
            value = getattr(self, name)
            if value is not None and check_whole(name, value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, allowed in (
            ("optimizer", ("sgd", "adamw")),
            ("engine", ("auto", "loop", "vmap", "fused")),
            ("precision", tuple(DTYPES)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.momentum < inf:
            raise ValueError(f"momentum must not be negative, got {self.momentum}")
        goal = self.stop_at_train_accuracy
        if goal is not None and not 0 < goal <= 1:
            raise ValueError(
                f"stop_at_train_accuracy must be above 0 and at most 1, got {goal}; 95% is 0.95"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0; set momentum, for "
                             "instance to 0.9")  # fmt: skip
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(
                f"momentum is for optimizer='sgd', got {self.momentum} with 'adamw'; set betas"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas}")
        if not 0 <= self.eps < inf:
            raise ValueError(f"eps must not be negative, got {self.eps}")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, and of inputs of floating point."""
        return DTYPES[self.precision]

    def updates(self, n: int) -> int:
        """Updates of an epoch for a training set of ``n`` examples."""
        return self.updates_per_epoch or -(-n // self.batch_size)

    def is_evaluated(self, epoch: int) -> bool:
        """Whether an epoch has a result."""
        return epoch % self.evaluate_every == 0 or epoch == self.epochs

    def described(self) -> dict[str, Any]:
        """What two runs must have in common to be the same run."""
        options = f"momentum {self.momentum}, nesterov {self.nesterov}"
        if self.optimizer == "adamw":
            options = f"betas {tuple(self.betas)}, eps {self.eps}"
        return {
            "batch_size": self.batch_size,
            "updates_per_epoch": self.updates_per_epoch,
            "optimizer": f"{self.optimizer} ({options})",
            "evaluate_every": self.evaluate_every,
            "stop_at_train_accuracy": self.stop_at_train_accuracy,
            "engine": self.engine,
            "precision": self.precision,
        }


def check_members(members: Sequence[Member], validation: Tensors | None) -> None:
    """Raise unless every member can be trained by itself.

    Raises:
        TypeError: If a member, or a data set, is something else.
        ValueError: If there are none, data are empty, a number is out of range, or members share
            weights.
    """
    if not members:
        raise ValueError("members is empty; at least one Member is needed")
    owners: dict[int, int] = {}
    for number, member in enumerate(members):
        if not isinstance(member, Member):
            raise TypeError(
                f"members[{number}] must be a Member, got {type(member).__name__}; "
                "pass Member(model, train)"
            )
        _check_data(f"train of members[{number}]", member.train)
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(member, name) < inf:
                raise ValueError(
                    f"{name} of members[{number}] must not be negative, got {getattr(member, name)}"
                )
        check_whole(f"seed of members[{number}]", member.seed)
        if not isinstance(member.model, nn.Module):
            raise TypeError(
                f"model of members[{number}] must be a torch.nn.Module, got "
                f"{type(member.model).__name__}"
            )
        weights = list(member.model.parameters())
        if not any(weight.requires_grad for weight in weights):
            raise ValueError(
                f"model of members[{number}] has no weight with requires_grad; nothing to train"
            )
        for weight in {id(weight) for weight in weights}:
            if owners.setdefault(weight, number) != number:
                raise ValueError(
                    f"members[{owners[weight]}] and members[{number}] have the same model, or "
                    "weights in common; give each member its own, for instance copy.deepcopy(model)"
                )
    if validation is not None:
        _check_data("validation", validation)


def _check_data(name: str, data: Any) -> None:
    if not isinstance(data, Tensors):
        raise TypeError(
            f"{name} must be memtools.data.Tensors, got {type(data).__name__}; "
            "convert it with memtools.data.in_memory"
        )
    if len(data) == 0:
        raise ValueError(f"{name} is empty; at least one example is needed")
