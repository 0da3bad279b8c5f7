"""What the engines have in common that hold the weights of several members in one vector."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from memtools.training.ensemble.flat import Flat, Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.noise import Draw, Noise
from memtools.training.ensemble.stack import Stack
from memtools.training.ensemble.table import Table
from memtools.training.ensemble.update import stacked_update
from memtools.training.evaluation import Evaluation

__all__ = ["Stacked", "cross_entropies"]

EVALUATED_AT_ONCE = 1024
"""Examples of a member in a pass of the evaluation, as in ``memtools.training.evaluate``."""
NUMBERS_AT_ONCE = 2**22
"""Numbers in the inputs of such a pass at most, over all members."""


class Stacked(Stack):
    """Several members in one vector of weights.

    Args:
        members: Of one architecture.
        places: Which members of the table these are.
        table: The examples.
        settings: What all members share.
        slots: States of the optimiser after the updates so far.
        trainable: Names of the weights that are updated.
        draws: What an update draws, by the size of its batch.
        transposed: Names of matrices that lie in memory transposed.
    """

    def __init__(
        self,
        members: Sequence[Member],
        places: Sequence[int],
        table: Table,
        settings: Settings,
        *,
        slots: Sequence[Slots | None],
        trainable: Sequence[str],
        draws: dict[int, list[Draw]],
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(members, places, table, settings)
        models = [member.model for member in members]
        self.weights = Flat(models, trainable, transposed)
        self.update = stacked_update(self.weights, members, slots, settings)
        self.gradients = self.weights.split(self.update.gradients)
        self.noise = Noise(models, draws, table.inputs.device, settings.dtype)
        self._batches: dict[int, Tensor] = {}

    def start(self, epoch: int) -> None:
        """Go to the beginning of the random streams of an epoch."""
        self.noise.start([member.seed for member in self.members], epoch)

    @torch.no_grad()
    def evaluate(self, held_out: tuple[Tensor, Tensor] | None) -> list[Evaluation]:
        """Loss and accuracy of each member."""
        k, table = len(self.members), self.table
        lengths = [table.lengths[p] for p in self.places]
        if held_out is None and len(set(lengths)) > 1:
            return self._evaluate_ragged(lengths)
        n = lengths[0] if held_out is None else len(held_out[0])
        inputs = table.inputs if held_out is None else held_out[0]
        shared = held_out is not None or table.is_shared(self.places)
        each = inputs[0].numel() * (1 if shared else k)
        size = max(1, min(EVALUATED_AT_ONCE, NUMBERS_AT_ONCE // max(1, each)))
        sums = torch.zeros(2, k, dtype=torch.float64, device=inputs.device)
        for start in range(0, n, size):
            order = torch.arange(start, min(start + size, n)).expand(k, -1)
            if held_out is None:
                rows, labels = table.rows(self.places, order)
                targets = table.targets[labels]
                x = inputs[rows[:1]].expand(k, *[-1] * inputs.ndim) if shared else inputs[rows]
            else:
                part = slice(start, start + size)
                x = held_out[0][part].expand(k, *[-1] * inputs.ndim)
                targets = held_out[1][part].long().expand(k, -1)
            sums += self._sums(x, targets)
        return _means(sums.tolist(), [n] * k)

    def _evaluate_ragged(self, lengths: list[int]) -> list[Evaluation]:
        """On training sets of different lengths: the short ones are filled up, and do not count."""
        k, table = len(self.members), self.table
        longest = torch.tensor(lengths).unsqueeze(1)
        each = table.inputs[0].numel() * k
        size = max(1, min(EVALUATED_AT_ONCE, NUMBERS_AT_ONCE // max(1, each)))
        sums = torch.zeros(2, k, dtype=torch.float64, device=table.inputs.device)
        for start in range(0, max(lengths), size):
            order = torch.arange(start, min(start + size, max(lengths))).expand(k, -1)
            counts = order < longest
            rows, labels = table.rows(self.places, torch.minimum(order, longest - 1))
            counts = counts.to(table.inputs.device)
            sums += self._sums(table.inputs[rows], table.targets[labels], counts)
        return _means(sums.tolist(), lengths)

    def _sums(self, inputs: Tensor, targets: Tensor, counts: Tensor | None = None) -> Tensor:
        """Sums of the losses and number of right ones, ``(2, members)``; NaN for broken logits."""
        logits = self.logits(inputs)
        losses = self.losses(logits, targets)
        right = logits.argmax(-1) == targets
        if counts is not None:
            losses, right = losses.where(counts, 0), right & counts
        sums = torch.stack([losses.sum(1).double(), right.sum(1).double()])
        finite = logits.isfinite().flatten(1).all(1)
        return sums.where(finite, torch.nan)

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits ``(members, n, C)`` of inputs ``(members, n, ...)`` in eval mode."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses ``(members, n)``."""
        return cross_entropies(logits, targets)

    def slots(self, row: int) -> Slots:
        """State of the optimiser of one member."""
        return self.update.slots(row)

    def write_back(self, rows: Sequence[int]) -> None:
        """Give some of the models their weights."""
        self.weights.write_back(rows)

    def batch(self, rows: Tensor) -> Tensor:
        """Inputs of a batch, ``(members, batch, ...)``; overwritten by the next of its size."""
        k, size = rows.shape
        inputs = self.table.inputs
        if size not in self._batches:
            self._batches[size] = inputs.new_empty((k * size, *inputs.shape[1:]))
        buffer = self._batches[size]
        torch.index_select(inputs, 0, rows.reshape(-1), out=buffer)
        return buffer.view(k, size, *inputs.shape[1:])


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies ``(k, n)`` of logits ``(k, n, C)``."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def _means(sums: list[list[float]], counts: Sequence[int]) -> list[Evaluation]:
    return [Evaluation(loss / n, right / n) for loss, right, n in zip(*sums, counts, strict=True)]
