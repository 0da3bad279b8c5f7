"""What one use of a weight adds to the gradients of the single examples, without forming them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from memtools_kernels import lookup_dots, lookup_norms, outer_norms, row_norms
from torch import Tensor

__all__ = ["Dense", "Lookup", "Outer", "Piece", "sum_squares"]


class Piece(ABC):
    """The gradients of n examples with respect to one weight, in the form that is cheapest."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``, float32 or wider."""

    def outer(self) -> "Piece":
        """The form in which it adds to other pieces of the same weight."""
        return self


@dataclass(frozen=True)
class Dense(Piece):
    """The gradients themselves, for weights that are no larger than the activations.

    Attributes:
        gradients: Shape ``(n, *weight.shape)``, up to dimensions of size 1.
    """

    gradients: Tensor

    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``."""
        return row_norms(self.gradients, squared=True)


@dataclass(frozen=True)
class Outer(Piece):
    """Sums of outer products: ``sum_t rows_t columns_t^T`` for a weight of shape ``(R, C)``.

    Attributes:
        rows: Shape ``(n * groups, T, R)``.
        columns: Shape ``(n * groups, T, C)``.
        groups: Independent blocks of the weight, the groups of a convolution.
    """

    rows: Tensor
    columns: Tensor
    groups: int = 1

    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``."""
        squares = outer_norms(self.rows, self.columns)
        return squares if self.groups == 1 else squares.view(-1, self.groups).sum(1)

    def transposed(self) -> "Outer":
        """The same for the transposed weight."""
        return Outer(self.columns, self.rows, self.groups)


@dataclass(frozen=True)
class Lookup(Piece):
    """Gradients of an embedding: ``gradients_t`` goes to the row ``indices_t`` of the table.

    Attributes:
        indices: Shape ``(n, T)``.
        gradients: Shape ``(n, T, d)``; zero where a lookup does not count.
    """

    indices: Tensor
    gradients: Tensor

    def squares(self) -> Tensor:
        """Squared Euclidean norms, shape ``(n,)``."""
        return lookup_norms(self.indices, self.gradients)

    def dot(self, outer: Outer) -> Tensor:
        """Inner product with the gradients of another use of the same table, shape ``(n,)``."""
        return lookup_dots(self.indices, self.gradients, outer.rows, outer.columns)


def sum_squares(pieces: Sequence[Piece]) -> Tensor:
    """Squared norms of the gradients of a weight that is used more than once, shape ``(n,)``."""
    if len(pieces) == 1:
        return pieces[0].squares()
    pieces = [p.outer() for p in pieces]
    dense = [p for p in pieces if isinstance(p, Dense)]
    outers = [p for p in pieces if isinstance(p, Outer)]
    lookups = [p for p in pieces if isinstance(p, Lookup)]
    if dense:
        # Flat, since each has its own dimensions of size 1.
        return row_norms(torch.stack([p.gradients.flatten(1) for p in dense]).sum(0), squared=True)
    squares = torch.zeros(())
    if outers:
        rows = torch.cat([p.rows for p in outers], 1)
        columns = torch.cat([p.columns for p in outers], 1)
        outers = [Outer(rows, columns, outers[0].groups)]
        squares = squares.to(rows.device) + outers[0].squares()
    if lookups:
        indices = torch.cat([p.indices for p in lookups], 1)
        gradients = torch.cat([p.gradients for p in lookups], 1)
        lookup = Lookup(indices, gradients)
        squares = squares.to(indices.device) + lookup.squares()
        squares = sum((2 * lookup.dot(outer) for outer in outers), squares)
    return squares
