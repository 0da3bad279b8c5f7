"""The data that a tape was recorded on, or that an objective is the loss of, as tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from memtools.batch import check_batch, check_tensor
from memtools.data import in_memory
from memtools.guard import plain

__all__ = ["Examples"]


class Examples:
    """Inputs and targets on the device of the model.

    Args:
        name: Of the argument, for errors.
        data: ``(inputs, targets)`` as tensors, or a map-style data set.
        device: Of the model.
        dtype: Of the model.

    Attributes:
        inputs: Shape ``(n, ...)``.
        targets: Shape ``(n, ...)``.

    Raises:
        TypeError: If the data are of another kind.
        ValueError: If they are empty, of integers, or not finite.
    """

    def __init__(self, name: str, data: Any, device: torch.device, dtype: torch.dtype) -> None:
        if isinstance(data, DataLoader):
            raise TypeError(f"{name} must be a data set, got a DataLoader; pass its .dataset")
        if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
            inputs, targets = data
        elif (
            hasattr(data, "__getitem__")
            and hasattr(data, "__len__")
            and not isinstance(data, Tensor | str)
        ):
            try:
                tensors = in_memory(data)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"{name} must be (inputs, targets) as tensors, or a map-style data set of such "
                    f"pairs: {error}"
                ) from error
            inputs, targets = tensors.inputs, tensors.targets
        else:
            raise TypeError(
                f"{name} must be (inputs, targets) or a map-style data set, "
                f"got {type(data).__name__}"
            )
        try:
            check_tensor("targets", targets)
            check_batch(inputs, targets)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        with torch.inference_mode(False):  # what is made in it can have no gradient
            self.inputs = plain(inputs).to(device, dtype)
            self.targets = plain(targets).to(device)
            self._everything = torch.arange(len(self.inputs), device=device)
        if not bool(self.inputs.isfinite().all()):
            raise ValueError(f"{name} holds inputs that are NaN or infinite; leave them out")

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some examples."""
        if len(indices) == len(self) and torch.equal(indices, self._everything):
            return self.inputs, self.targets  # no copy
        return self.inputs[indices], self.targets[indices]

    def indices(self, recorded: Tensor, number: int) -> Tensor:
        """The recorded indices of an update, on the device of the data.

        Raises:
            ValueError: If one is out of range.
        """
        indices = recorded.to(self.inputs.device, torch.long)
        low, high = (int(v) for v in torch.aminmax(indices))
        if low < 0 or high >= len(self):
            raise ValueError(
                f"update {number} was recorded with indices from {low} to {high}, but data holds "
                f"{len(self)} examples; pass the data set of the training"
            )
        return indices
