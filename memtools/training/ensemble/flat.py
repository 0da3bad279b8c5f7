"""The trainable weights of several models in one vector."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Flat", "Slots"]

Slots = dict[str, dict[str, Any]]
"""State of an optimiser for one member: of each weight by name, its entries by name."""


class Flat:
    """Weights of ``k`` models in one vector, so that an update is a few operations on it.

    A weight lies there as ``(k, size)``, one weight after the other: products of matrices are fast
    only on results that are contiguous.

    Args:
        models: Of one architecture, on one device, in one dtype.
        names: The weights that are updated.
        transposed: Names of matrices that lie in memory transposed.

    Attributes:
        vector: The weights.
        views: The same memory as ``(k, *shape)`` tensors by name.
        others: Stacked copies of all other weights, by name.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        names: Sequence[str],
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self._models, self._names, self._transposed = models, list(names), transposed
        weights = [dict(model.named_parameters()) for model in models]
        self._shapes = {name: weights[0][name].shape for name in names}
        size = sum(shape.numel() for shape in self._shapes.values())
        first = weights[0][self._names[0]].detach()
        self.vector = first.new_zeros(len(models) * size)
        self.views = self.split(self.vector)
        stacked = {
            name: torch.stack([w[name].detach() for w in weights]) for name in weights[0]
        }  # fmt: skip
        for name in self._names:
            self.views[name].copy_(stacked.pop(name))
        self.others = stacked

    def like(self) -> Tensor:
        """A vector of zeros, for gradients or the state of an optimiser."""
        return torch.zeros_like(self.vector)

    def blocks(self, vector: Tensor) -> list[Tensor]:
        """A vector of this layout as ``(k, size)`` views, one for each weight."""
        k = len(self._models)
        sizes = [k * shape.numel() for shape in self._shapes.values()]
        return [part.view(k, -1) for part in vector.split(sizes)]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of this layout as ``(k, *shape)`` views by name."""
        views = {}
        for (name, shape), block in zip(self._shapes.items(), self.blocks(vector), strict=True):
            lies = shape[::-1] if name in self._transposed else shape
            view = block.view(len(self._models), *lies)
            views[name] = view.mT if name in self._transposed else view
        return views

    @torch.no_grad()
    def write_back(self, rows: Sequence[int]) -> None:
        """Give some of the models their weights."""
        for row in rows:
            weights = dict(self._models[row].named_parameters())
            for name, view in self.views.items():
                weights[name].copy_(view[row])

    def slots(self, row: int, vectors: Mapping[str, Tensor], step: int) -> Slots:
        """State of an optimiser that belongs to one model, copied."""
        split = {slot: self.split(vector) for slot, vector in vectors.items()}
        return {
            name: {"step": step} | {slot: views[name][row].clone() for slot, views in split.items()}
            for name in self._names
        }

    def load_slots(self, slots: Sequence[Slots | None], vectors: Mapping[str, Tensor]) -> int:
        """Take over what :meth:`slots` gave for each model; the number of updates so far."""
        step = 0
        split = {slot: self.split(vector) for slot, vector in vectors.items()}
        for row, own in enumerate(slots):
            if own is None:
                continue
            # Of members that have left, the state is older.
            step = max(step, int(own[self._names[0]]["step"]))
            for slot, views in split.items():
                for name, view in views.items():
                    view[row].copy_(own[name][slot])
        return step
