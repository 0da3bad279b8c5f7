"""The engine that trains one member after the other, as the trainer does: the reference."""

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from memtools import seeds
from memtools.batch import unchecked_losses
from memtools.data import Tensors
from memtools.guard import logits_of
from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.stack import Stack
from memtools.training.ensemble.table import Table
from memtools.training.ensemble.update import optimizer
from memtools.training.evaluation import Evaluation, evaluate

__all__ = ["Loop"]


class Loop(Stack):
    """A stack of one member: any model, ``torch.optim``.

    Args:
        members: The member.
        places: Its place in the table.
        table: Its examples.
        settings: What all members share.
        slots: State of the optimiser after the updates so far.
    """

    def __init__(
        self,
        members: Sequence[Member],
        places: Sequence[int],
        table: Table,
        settings: Settings,
        slots: Sequence[Slots | None],
    ) -> None:
        super().__init__(members, places, table, settings)
        self.model = members[0].model
        self._weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = optimizer(list(self._weights.values()), members[0], settings)
        for name, state in (slots[0] or {}).items():
            weight = self._weights[name]
            self._optimizer.state[weight] = {
                key: value.to(weight.device) if key != "step" else value
                for key, value in state.items()
            }

    def start(self, epoch: int) -> None:
        """Seed the global streams, from which the modules draw."""
        torch.manual_seed(seeds.derive_seed(self.members[0].seed, "noise", epoch, 0))
        self.model.train()

    def step(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Take one update."""
        logits = logits_of(self.model(self.table.inputs[rows[0]]))
        losses = unchecked_losses(self.settings.loss_fn, logits, targets[0])
        loss = losses.sum() * (1 / len(losses))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach().unsqueeze(0)

    def evaluate(self, held_out: tuple[Tensor, Tensor] | None) -> list[Evaluation]:
        """Loss and accuracy."""
        data = Tensors(*(held_out or (self.table.inputs, self.table.targets)))
        try:
            return [evaluate(self.model, data, loss_fn=self.settings.loss_fn)]
        except FloatingPointError:
            return [Evaluation(nan, nan)]

    def slots(self, row: int) -> Slots:
        """State of the optimiser."""
        return {
            name: dict(self._optimizer.state[weight])
            for name, weight in self._weights.items()
            if weight in self._optimizer.state
        }

    def write_back(self, rows: Sequence[int]) -> None:
        """The model has its weights all the time."""
