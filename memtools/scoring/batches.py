"""Batches of a data set, read by workers in a given order."""

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

__all__ = ["check_dataset", "read_batch", "read_batches"]


def check_dataset(dataset: Any) -> None:
    """Raise unless it is a map-style data set that holds an example.

    Raises:
        TypeError: If it is none.
        ValueError: If it is empty.
    """
    if isinstance(dataset, DataLoader):
        raise TypeError("data must be a data set, got a DataLoader; pass its .dataset")
    is_mapped = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset | Tensor | dict) or not is_mapped:
        raise TypeError(
            "data must be a map-style data set, with len(data) and data[i] = (input, target), got "
            f"{type(dataset).__name__}; a stream cannot be resumed or shared: index it first"
        )
    if len(dataset) == 0:
        raise ValueError("data is empty; at least one example is needed")


def read_batch(dataset: Any, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some examples.

    Args:
        dataset: Items are ``(input, target)`` with whatever else behind; inputs are tensors or
            arrays of one shape, targets class numbers.
        indices: Which.

    Returns:
        Inputs ``(n, ...)`` and targets ``(n,)`` int64.

    Raises:
        ValueError: If an example cannot be read, or is of another kind.
    """
    inputs, targets = [], []
    for i in indices:
        try:
            item = dataset[i]
        except Exception as error:
            raise ValueError(
                f"data cannot give example {i} ({type(error).__name__}: {error}); "
                f"try data[{i}] by itself"
            ) from error
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise ValueError(f"data must give (input, target), got {_kind(item)} for example {i}")
        value, target = item[0], item[1]
        if not isinstance(value, Tensor | np.ndarray):
            raise ValueError(
                f"data must give tensors as inputs, got {type(value).__name__} for example {i}; "
                "add a transform such as torchvision's ToTensor"
            )
        inputs.append(torch.as_tensor(value))
        targets.append(_class_number(target, i))
        if inputs[-1].shape != inputs[0].shape or inputs[-1].dtype != inputs[0].dtype:
            raise ValueError(
                "data must give inputs of one shape and dtype, got "
                f"{tuple(inputs[0].shape)} {inputs[0].dtype} for example {indices[0]} and "
                f"{tuple(inputs[-1].shape)} {inputs[-1].dtype} for example {i}; crop or pad them"
            )
    return torch.stack(inputs), torch.tensor(targets)


def read_batches(
    dataset: Any, batches: Sequence[range], *, workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches one after the other, see :func:`read_batch`.

    The global random state of this process is neither read nor changed.

    Raises:
        ValueError: If an example cannot be read, or is of another kind.
    """
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a seed for the workers would be drawn from the global one
        # A module that was loaded from a file is unknown in a process that begins anew.
        multiprocessing_context="fork" if forks else None,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        inputs, targets = batch
        yield inputs, targets


class _Batches(Dataset[Any]):
    """Batches in place of examples; an error as its message, which a worker can send."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, indices: range) -> tuple[Tensor, Tensor] | str:
        try:
            return read_batch(self._dataset, indices)
        except ValueError as error:
            return str(error)


def _class_number(target: Any, index: int) -> int:
    is_single = not isinstance(target, Tensor | np.ndarray) or target.ndim == 0
    value = (
        target.item()
        if isinstance(target, Tensor | np.generic | np.ndarray) and is_single
        else target
    )
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"data must give class numbers as targets, got {_kind(target)} for example {index}; "
            "number the classes from 0"
        )
    return value


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
