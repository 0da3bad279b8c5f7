"""The training sets of a group of members in one table, each tensor in it once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memtools.data import Tensors

__all__ = ["Table", "prepared"]


def prepared(
    sets: Sequence[Tensors], device: torch.device, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets on a device and in a dtype; what several sets share, they share still."""
    moved: dict[tuple[object, ...], Tensor] = {}

    def move(tensor: Tensor, wanted: torch.dtype | None) -> Tensor:
        key = _identity(tensor)
        if key not in moved:
            moved[key] = tensor.detach().to(device, wanted)
        return moved[key]

    return [
        (
            move(data.inputs, dtype if data.inputs.is_floating_point() else None),
            move(data.targets, None),
        )
        for data in sets
    ]


class Table:
    """Inputs and targets of all members, and where those of each begin.

    Members that share inputs but not labels, or the other way round, share them here as well.

    Args:
        sets: Inputs and targets of the members by their places in the group, on one device;
            inputs of one shape and dtype.

    Attributes:
        inputs: All inputs, ``(N, ...)``.
        targets: All targets, ``(M,)`` int64.
        lengths: Number of examples of each member, by its place.
    """

    def __init__(self, sets: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self.inputs, self._input_starts = _joined({p: inputs for p, (inputs, _) in sets.items()})
        joined, self._target_starts = _joined({p: targets for p, (_, targets) in sets.items()})
        self.targets = joined.long()
        self.lengths = {p: len(inputs) for p, (inputs, _) in sets.items()}

    def rows(self, places: Sequence[int], order: Tensor) -> tuple[Tensor, Tensor]:
        """From indices within each member's set, ``(members, L)``, to rows of the table."""
        of_inputs, of_targets = (
            (order + torch.tensor([[starts[p]] for p in places])).to(self.inputs.device)
            for starts in (self._input_starts, self._target_starts)
        )
        return of_inputs, of_targets

    def is_shared(self, places: Sequence[int]) -> bool:
        """Whether these members have the same inputs."""
        return len({(self._input_starts[p], self.lengths[p]) for p in places}) == 1


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same values in the same memory."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def _joined(tensors: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, int]]:
    unique = {_identity(t): t for t in tensors.values()}
    starts, total = {}, 0
    for key, tensor in unique.items():
        starts[key] = total
        total += len(tensor)
    parts = list(unique.values())
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined, {place: starts[_identity(t)] for place, t in tensors.items()}
