"""Embeddings, of what differs between examples, and of positions that are the same for all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Dense, Lookup
from memtools.gradients.rules.table import Operation, Part, rule

__all__ = ["Rows", "rows_of"]


@rule([torch.embedding])
def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operation | None:
    if scale_grad_by_freq:
        return None

    def build(indices: Tensor, gradient: Tensor, _: Layout) -> Lookup:
        indices = indices.reshape(len(indices), -1)
        gradient = gradient.reshape(*indices.shape, weight.shape[1])
        return _lookup(indices, gradient, padding_idx)

    return Operation(indices, [Part(weight, "lookup", build)], range(indices.ndim))


@dataclass(frozen=True)
class Rows:
    """Rows of a table that are the same for all examples, such as the embedding of positions.

    Attributes:
        table: The table.
        indices: Which rows, of any shape.
        padding_idx: A row without a gradient; negative for none.
    """

    table: Tensor
    indices: Tensor
    padding_idx: int

    def part(self, part: Part) -> Part:
        """From a use of the rows, as a weight that is broadcast, to one of the table."""

        def build(operand: Tensor, gradient: Tensor, layout: Layout) -> Lookup:
            dense = part.build(operand, gradient, layout)
            assert isinstance(dense, Dense)
            n, width = layout.n, self.table.shape[1]
            indices = self.indices.reshape(1, -1).expand(n, -1)
            gradients = dense.gradients.reshape(n, -1, width)
            return _lookup(indices, gradients, self.padding_idx)

        return Part(self.table, "lookup", build)


def rows_of(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Rows | None:
    """What a lookup gives if its indices have no dimension for the examples."""
    if scale_grad_by_freq or indices.ndim == 0 or (indices.ndim > 1 and len(indices) > 1):
        return None
    return Rows(weight, indices.detach().clone(), padding_idx)


def _lookup(indices: Tensor, gradients: Tensor, padding_idx: int) -> Lookup:
    if padding_idx >= 0:
        gradients = gradients.masked_fill((indices == padding_idx)[..., None], 0)
    return Lookup(indices, gradients)
