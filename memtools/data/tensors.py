"""A data set that is small enough to live as tensors, on whatever device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from memtools.batch import check_tensor

__all__ = ["Tensors", "column", "in_memory", "targets_of"]


class Tensors(Dataset[tuple[Tensor, Tensor, int]]):
    """Inputs and targets as two tensors; items are ``(input, target, index)``.

    Args:
        inputs: Shape ``(n, ...)``; everything else goes to their device.
        targets: Class numbers of shape ``(n,)``.
        is_corrupted: Which examples carry noise put in on purpose, ``(n,)`` bool; ``None`` is none.
        clean_targets: The targets before noise; ``None`` is ``targets``.

    Raises:
        TypeError: If an argument is no tensor.
        ValueError: If the lengths differ, or a tensor is sparse, quantised or without data.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        is_corrupted: Tensor | None = None,
        clean_targets: Tensor | None = None,
    ) -> None:
        given = {"inputs": inputs, "targets": targets}
        given |= {} if is_corrupted is None else {"is_corrupted": is_corrupted}
        given |= {} if clean_targets is None else {"clean_targets": clean_targets}
        for name, tensor in given.items():
            check_tensor(name, tensor)
            if tensor.ndim == 0:
                raise ValueError(f"{name} must have an entry for each example, got a scalar")
        n, device = len(inputs), inputs.device
        self.inputs = inputs
        self.targets = targets.to(device)
        self.is_corrupted = torch.zeros(n, dtype=torch.bool, device=device)
        if is_corrupted is not None:
            self.is_corrupted = is_corrupted.to(device)
        self.clean_targets = self.targets if clean_targets is None else clean_targets.to(device)
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
        """The same data on another device, inputs of floating point in another dtype if given."""
        inputs = self.inputs.to(device, dtype if self.inputs.is_floating_point() else None)
        return Tensors(inputs, self.targets, self.is_corrupted, self.clean_targets)


def in_memory(dataset: Any) -> Tensors:
    """Read a whole map-style data set into tensors, its noise mask included.

    Args:
        dataset: Items are ``(input, target)`` or ``(input, target, index)``; inputs are tensors
            or arrays of one shape.

    Returns:
        The data as tensors.

    Raises:
        ValueError: If the data set is empty, an input is neither tensor nor array, or the targets
            are no class numbers.
    """
    if isinstance(dataset, Tensors):
        return dataset
    inputs, targets = [], []
    for i in range(_length(dataset)):
        value, target, *_ = dataset[i]
        if not isinstance(value, Tensor | np.ndarray):
            raise ValueError(
                f"dataset must give tensors as inputs, got {type(value).__name__}; "
                "add a transform such as torchvision's ToTensor"
            )
        inputs.append(torch.as_tensor(value))
        targets.append(target)
    return Tensors(
        torch.stack(inputs) if inputs else torch.empty(0),
        _class_numbers(targets),
        column(dataset, "is_corrupted"),
        column(dataset, "clean_targets"),
    )


def targets_of(dataset: Any) -> Tensor:
    """The targets of a whole data set as its items have them, ``(n,)`` int64 on the CPU.

    They are read from ``dataset.targets`` where there is one, also below a ``Subset`` and the like.

    Raises:
        ValueError: If the data set is empty, or the targets are no class numbers.
    """
    targets = column(dataset, "targets")
    if targets is None:
        targets = [dataset[i][1] for i in range(_length(dataset))]
    return _class_numbers(targets)


def _length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__") or isinstance(dataset, str):
        raise TypeError(
            "dataset must be map-style, with a length and items (input, target), got "
            f"{type(dataset).__name__}"
        )
    return len(dataset)


def column(dataset: Any, name: str) -> Any:
    """A property of every example, found below ``Subset`` and the like, or ``None``."""
    if isinstance(dataset, Subset):
        values = column(dataset.dataset, name)
        positions = torch.tensor([int(i) for i in dataset.indices], dtype=torch.long)
        return None if values is None else torch.as_tensor(values).cpu()[positions]
    if isinstance(dataset, ConcatDataset):
        columns = [column(part, name) for part in dataset.datasets]
        if all(values is None for values in columns):
            return None
        for i, part in enumerate(dataset.datasets):
            values = _without_noise(part, name) if columns[i] is None else columns[i]
            columns[i] = torch.as_tensor(values).cpu()
        return torch.cat(columns)
    if name == "targets" and _changes_targets(dataset):
        return None
    return getattr(dataset, name, None)


def _without_noise(dataset: Any, name: str) -> Tensor:
    """What ``is_corrupted``, or the clean or present targets, are where a data set has none."""
    if name == "is_corrupted":
        return torch.zeros(len(dataset), dtype=torch.bool)
    return targets_of(dataset)


def _changes_targets(dataset: Any) -> bool:
    """Whether items carry other targets than ``dataset.targets``, as torchvision's sets may."""
    transforms = getattr(dataset, "transforms", None)
    # torchvision wraps a transform of the inputs alone in a record with both transforms.
    of_targets = getattr(transforms, "target_transform", transforms)
    return of_targets is not None or getattr(dataset, "target_transform", None) is not None


def _class_numbers(targets: Any) -> Tensor:
    if len(targets) == 0:
        raise ValueError("dataset is empty; at least one example is needed")
    try:
        if not isinstance(targets, Tensor | np.ndarray):
            targets = [t.item() if isinstance(t, Tensor | np.ndarray) else t for t in targets]
        numbers = torch.as_tensor(targets).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"targets must be class numbers, got {type(targets[0]).__name__} {targets[0]!r}"
        ) from error
    if numbers.numel() == len(numbers):
        numbers = numbers.flatten()  # some data sets keep one column
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(
            "targets must be class numbers of shape (n,) and an integer dtype, "
            f"got shape {tuple(numbers.shape)} and {numbers.dtype}"
        )
    return numbers.long()
