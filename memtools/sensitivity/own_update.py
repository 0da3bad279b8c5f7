"""An update that the user gives as a function, for optimisers that are not PyTorch's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from memtools.sensitivity.updates import WEIGHT, PullBack, Slice, Vectors

__all__ = ["OwnUpdate", "UpdateFunction"]

Named = dict[str, Tensor]

UpdateFunction = Callable[
    [Named, Named, dict[str, Named], Mapping[str, Mapping[str, Any]]],
    tuple[Named, Mapping[str, Named]],
]
"""``update(weights, gradients, state, settings) -> (weights, state)``."""


@dataclass(frozen=True)
class OwnUpdate:
    """A user's update function over flat vectors; the counterpart of ``Rule``.

    Attributes:
        function: See :data:`UpdateFunction`.
        names: Names of the weights in the order in which they lie in the flat vector.
        shapes: Their shapes.
    """

    function: UpdateFunction
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    is_linear = False

    def apply(self, vectors: Vectors, gradient: Tensor, slices: tuple[Slice, ...]) -> Vectors:
        """The vectors after an update."""
        old = {name: self._named(vector) for name, vector in vectors.items()}
        settings = {name: part.options or {} for name, part in zip(self.names, slices, strict=True)}
        weights = old.pop(WEIGHT)
        new, state = self.function(weights, self._named(gradient), dict(old), settings)
        idle = [n for n, part in zip(self.names, slices, strict=True) if part.options is None]
        after = {WEIGHT: self._flat("weights", new, weights, idle)}
        for key, named in state.items():
            before = old.get(key) or {name: torch.zeros_like(w) for name, w in weights.items()}
            after[key] = self._flat(key, named, before, idle)
        # What the optimiser keeps and the function does not change stays as it was.
        return {name: vectors[name] for name in vectors if name not in after} | after

    def pull_back(self, vectors: Vectors, gradient: Tensor, slices: tuple[Slice, ...]) -> PullBack:
        """The derivative of an update at these vectors, as a map of adjoints."""
        with torch.enable_grad():
            after, pull_one, *_ = vjp(lambda v, g: self.apply(v, g, slices), vectors, gradient)

        def pull(adjoints: Vectors) -> tuple[Vectors, Tensor, float]:
            count = len(adjoints[WEIGHT])
            given = {
                name: adjoints.get(name, vector.new_zeros(1).expand(count, len(vector)))
                for name, vector in after.items()
            }
            return *vmap(pull_one)(given), 1.0

        return pull

    def _named(self, vector: Tensor) -> Named:
        parts = vector.split([shape.numel() for shape in self.shapes])
        return {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def _flat(
        self, key: str, named: Mapping[str, Tensor], before: Named, idle: list[str]
    ) -> Tensor:
        # Weights without a gradient are left alone, as PyTorch's optimisers do.
        named = dict(named) | {name: before[name] for name in idle}
        if named.keys() != set(self.names):
            raise ValueError(
                f"update must return {key} for the weights {', '.join(self.names)}, "
                f"got {', '.join(named) or 'none'}"
            )
        return torch.cat([named[name].reshape(-1) for name in self.names])
