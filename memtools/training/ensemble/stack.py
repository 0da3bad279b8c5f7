"""What all engines have in common: an epoch of some members, and its evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.order import batch_sizes, epoch_order
from memtools.training.ensemble.table import Table
from memtools.training.evaluation import Evaluation

__all__ = ["Stack"]


class Stack(ABC):
    """Some members of one architecture that are trained together.

    Attributes:
        members: The members; their weights are theirs again after :meth:`write_back`.
        places: Which members of the group, and of the table, these are.
        table: The examples.
        settings: What all members share.
    """

    def __init__(
        self, members: Sequence[Member], places: Sequence[int], table: Table, settings: Settings
    ) -> None:
        self.members, self.places = list(members), list(places)
        self.table, self.settings = table, settings

    def train_epoch(self, epoch: int) -> tuple[Tensor, int]:
        """Train for an epoch.

        Returns:
            Sums of the losses of each member, on the device, and over how many examples.
        """
        lengths = [self.table.lengths[p] for p in self.places]
        orders = [
            epoch_order(member.seed, n, epoch, self.settings)
            for member, n in zip(self.members, lengths, strict=True)
        ]
        self.start(epoch)
        return self.run(torch.stack(orders), batch_sizes(lengths[0], self.settings))

    def run(self, order: Tensor, sizes: list[int]) -> tuple[Tensor, int]:
        """Take one update on each of the batches into which an order is cut.

        Args:
            order: Indices of examples within each member's training set, ``(members, L)``.
            sizes: Of the batches; their sum is L.
        """
        input_rows, target_rows = self.table.rows(self.places, order)
        targets = self.table.targets[target_rows]
        total = torch.zeros(len(self.members), dtype=self.settings.dtype, device=targets.device)
        for rows, labels in zip(input_rows.split(sizes, 1), targets.split(sizes, 1), strict=True):
            total += self.step(rows, labels) * rows.shape[1]
        return total, order.shape[1]

    @abstractmethod
    def start(self, epoch: int) -> None:
        """Go to the beginning of the random streams of an epoch."""

    @abstractmethod
    def step(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Take one update; the mean loss of each member before it, ``(members,)``.

        Args:
            rows: Rows of the table's inputs, ``(members, batch)``.
            targets: Class numbers, ``(members, batch)``.
        """

    @abstractmethod
    def evaluate(self, held_out: tuple[Tensor, Tensor] | None) -> list[Evaluation]:
        """Loss and accuracy of each member in eval mode.

        Args:
            held_out: Inputs and targets, the same for all; ``None`` is each member's training set.

        Returns:
            One for each member, of NaN where logits are not finite.
        """

    @abstractmethod
    def slots(self, row: int) -> Slots:
        """State of the optimiser of one member."""

    @abstractmethod
    def write_back(self, rows: Sequence[int]) -> None:
        """Give some of the models their weights."""
