"""A data set that is small enough to live as tensors, on whatever device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Tensors", "in_memory", "targets_of"]


class Tensors(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs and targets as two tensors; items are ``(input, target, index)``.

    Args:
        inputs: Shape ``(n, ...)``.
        targets: Class numbers of shape ``(n,)``.
        is_corrupted: Which examples carry noise put in on purpose, ``(n,)`` bool; ``None`` is none.
        clean_targets: The targets before noise; ``None`` is ``targets``.

    Raises:
        ValueError: If the lengths differ.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        is_corrupted: Tensor | None = None,
        clean_targets: Tensor | None = None,
    ) -> None:
        n = len(inputs)
        self.inputs = inputs
        self.targets = targets
        self.is_corrupted = (
            torch.zeros(n, dtype=torch.bool) if is_corrupted is None else is_corrupted
        )
        self.clean_targets = targets if clean_targets is None else clean_targets
        for name in ("targets", "is_corrupted", "clean_targets"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} must have {n} entries, got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.inputs[index], self.targets[index], index

    def subset(self, indices: Tensor) -> "Tensors":
        """The examples of these indices, numbered anew from 0."""
        return Tensors(
            self.inputs[indices],
            self.targets[indices],
            self.is_corrupted[indices],
            self.clean_targets[indices],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Tensors":
        """The same data on another device, the inputs in another dtype if one is given."""
        return Tensors(
            self.inputs.to(device, dtype),
            self.targets.to(device),
            self.is_corrupted.to(device),
            self.clean_targets.to(device),
        )


def in_memory(dataset: Any) -> Tensors:
    """Read a whole map-style data set into tensors, its noise mask included.

    Args:
        dataset: Items are ``(input, target)`` or ``(input, target, index)``; inputs are tensors
            of one shape.

    Returns:
        The data as tensors.
    """
    if isinstance(dataset, Tensors):
        return dataset
    items = [dataset[i] for i in range(len(dataset))]
    return Tensors(
        torch.stack([torch.as_tensor(item[0]) for item in items]),
        torch.tensor([int(item[1]) for item in items]),
        getattr(dataset, "is_corrupted", None),
        getattr(dataset, "clean_targets", None),
    )


def targets_of(dataset: Any) -> Tensor:
    """The targets of a whole data set, read from ``dataset.targets`` where there is one."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [int(dataset[i][1]) for i in range(len(dataset))]
    return torch.as_tensor(targets).cpu()
