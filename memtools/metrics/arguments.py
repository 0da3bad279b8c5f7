"""What the arguments of metrics over examples have to be."""

import operator
from typing import Any

import torch
from torch import Tensor

__all__ = ["checked_count", "checked_indices", "checked_values"]


def checked_count(name: str, value: Any) -> int:
    """A positive whole number.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below 1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number, got {type(value).__name__}; pass for instance "
            "len(dataset)"
        ) from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}; pass for instance len(dataset)")
    return number


def checked_indices(indices: Any, n: int, num_examples: int) -> Tensor:
    """Which examples of the data set a batch holds, int64.

    Args:
        indices: What the user gave.
        n: Number of examples in the batch.
        num_examples: Number of examples in the data set.

    Raises:
        TypeError: If they are no tensor, array or sequence.
        ValueError: If they are no integers of shape ``(n,)`` within the range.
    """
    try:
        found = torch.as_tensor(indices).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"indices must be a tensor of integers, got {type(indices).__name__}; let the data set "
            "return the number of each example with it"
        ) from None
    if found.shape == (0,) and not isinstance(indices, Tensor):
        found = found.long()  # an empty list
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"indices must be of an integer dtype, got {found.dtype}; a mask becomes indices by "
            "mask.nonzero().flatten()"
        )
    if found.shape != (n,):
        raise ValueError(
            f"indices must have one entry for each of the {n} examples of the batch, got shape "
            f"{tuple(found.shape)}; let the data set return the number of each example with it"
        )
    if n:
        low, high = (int(v) for v in torch.aminmax(found))
        if low < 0 or high >= num_examples:
            raise ValueError(
                f"indices must lie in 0..{num_examples - 1} for num_examples={num_examples}, got "
                f"values from {low} to {high}; they count in the whole data set, from 0"
            )
    return found.long()


def checked_values(name: str, values: Any) -> Tensor:
    """Finite nonnegative values of single examples, ``(n,)``.

    Raises:
        TypeError: If they are no tensor, array or sequence.
        ValueError: If the shape is another, or a value is negative, NaN or infinite.
    """
    try:
        found = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be a tensor of shape (n,), got {type(values).__name__}; convert it with "
            "torch.as_tensor"
        ) from None
    if found.ndim != 1 or found.is_complex():
        raise ValueError(
            f"{name} must be real values of shape (n,), got {found.dtype} of shape "
            f"{tuple(found.shape)}; pass one value per example, not averaged"
        )
    if not bool(torch.isfinite(found).all()):
        first = int((~torch.isfinite(found)).nonzero()[0])
        raise ValueError(
            f"{name} must be finite, got {float(found[first])} for example {first} of the batch; "
            "check the training for divergence, or leave the example out"
        )
    if bool((found < 0).any()):
        raise ValueError(
            f"{name} must be nonnegative, got {float(found.min())}; take norms or absolute values"
        )
    return found
