"""A training under way, and what each of its epochs came to."""

from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from memtools.batch import LossFunction
from memtools.training.devices import Ranks

__all__ = ["EpochResult", "Run"]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to.

    Attributes:
        epoch: Number of the epoch, from 1.
        updates: Optimiser steps so far.
        learning_rate: Learning rate of the first parameter group during the epoch.
        loss: Mean training loss over the epoch's own batches, as they were trained on.
        train_accuracy: Share of the training examples right after the epoch, in eval mode.
        validation_loss: Mean loss on the validation set, ``None`` without one.
        validation_accuracy: Share of the validation set right, ``None`` without one.
    """

    epoch: int
    updates: int
    learning_rate: float
    loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None

    @classmethod
    def of(cls, values: Any) -> Self:
        """One out of a checkpoint.

        Raises:
            TypeError: If a value is missing or no number.
        """
        if not isinstance(values, dict) or not all(
            isinstance(value, int | float | None) for value in values.values()
        ):
            raise TypeError(f"results must be numbers, got {values}")
        return cls(**values)


@dataclass
class Run:
    """The state of a training under way, as callbacks see it.

    Attributes:
        model: The user's module, unwrapped, on its device.
        optimizer: The optimiser that updates it.
        train: The training set, on the device if it is small.
        ranks: This process among those that train together.
        loss_fn: What is minimised, ``None`` for the cross-entropy.
        results: One entry per finished epoch.
        updates: Optimiser steps so far.
    """

    model: nn.Module
    optimizer: Optimizer
    train: Any
    ranks: Ranks
    loss_fn: LossFunction | None = None
    results: list[EpochResult] = field(default_factory=list)
    updates: int = 0
