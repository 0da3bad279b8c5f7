"""The two tasks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools import seeds
from memtools.data import Tensors
from memtools.studies.data import Data
from memtools.studies.forgetting.config import Config

__all__ = ["PHASES", "Task", "tasks_of"]

PHASES = ("A", "B")
"""What is trained on, first and then."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        train: Examples to train on.
        validation: Examples held out.
    """

    train: Tensors
    validation: Tensors


def tasks_of(config: Config, data: Data, seed: int) -> dict[str, Task]:
    """Both tasks, by phase.

    Args:
        config: All settings.
        data: The data.
        seed: Fixes the permutation.

    Returns:
        Tasks with the same outputs and shape of inputs.

    Raises:
        ValueError: If the classes cannot be split.
    """
    parts = (data.train, data.validation)
    if config.tasks == "permuted":
        pixels = data.train.inputs[0].numel()
        order = torch.randperm(pixels, generator=seeds.generator(seed, "permutation"))
        return {
            "A": Task(*parts),
            "B": Task(*(Tensors(_permuted(part.inputs, order), part.targets) for part in parts)),
        }
    half = len(data.split.class_names) // 2
    if half < 2:
        raise ValueError(
            f"tasks must be permuted for {len(data.split.class_names)} classes, got classes; each "
            "half needs at least two"
        )
    found = {}
    # Where their number is odd, the last class is left out.
    for phase, first in zip(PHASES, (0, half), strict=True):
        own = [_classes(part, first, first + half) for part in parts]
        if not all(map(len, own)):
            raise ValueError(
                f"tasks must be permuted here, got classes; there is no example of task {phase} "
                f"among {len(parts[0])} training or {len(parts[1])} held-out ones"
            )
        found[phase] = Task(*own)
    return found


def _permuted(inputs: Tensor, order: Tensor) -> Tensor:
    return inputs.flatten(1)[:, order.to(inputs.device)].reshape(inputs.shape)


def _classes(part: Tensors, first: int, last: int) -> Tensors:
    """The examples of the classes from ``first`` to before ``last``, numbered from 0."""
    chosen = ((part.targets >= first) & (part.targets < last)).nonzero()[:, 0]
    return Tensors(part.inputs[chosen], part.targets[chosen] - first)
