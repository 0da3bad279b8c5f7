"""Adversarial training: a part of each batch gives way to critical points around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from memtools import seeds
from memtools.batch import unchecked_losses
from memtools.critical import find_critical
from memtools.guard import logits_of
from memtools.studies.cells import Tell
from memtools.studies.data import predict
from memtools.training import EpochResult, Member, evaluate, resolve_device

__all__ = ["Adversary", "train_adversarially"]


@dataclass(frozen=True)
class Adversary:
    """How critical points come into the training.

    Attributes:
        share: Share of a batch that is replaced, its first examples; they are in random order.
        radius: Half-width of the box around an example, in the units of the inputs.
        steps: Steps of the search, LASS.
        every: Updates from one search to the next.
    """

    share: float
    radius: float
    steps: int
    every: int

    def count(self, batch: Tensor) -> int:
        """How many examples of a batch are replaced."""
        return round(self.share * len(batch))


def train_adversarially(
    members: Sequence[Member],
    adversary: Adversary,
    *,
    epochs: int,
    batch_size: int,
    momentum: float,
    validation: object,
    device: str,
    precision: str,
    progress: Tell,
) -> list[EpochResult]:
    """Train networks by SGD, a part of each batch replaced by critical points with its labels.

    Where the search finds no critical point around an example, the example stays. Order, dropout
    and noise are those of :class:`memtools.training.Trainer`: without a part that is replaced, it
    is the same training, bit for bit.

    Args:
        members: The models, trained in place, and their training sets.
        adversary: How critical points come into it.
        epochs: Times through the training set.
        batch_size: Examples of an update.
        momentum: Of SGD.
        validation: Data evaluated on in the end.
        device: Where they are trained.
        precision: ``"float32"`` or ``"float64"``.
        progress: Told about every epoch, once all members are through.

    Returns:
        What the last epoch of each came to; the loss is on what was trained on.

    Raises:
        FloatingPointError: If a training diverges.
    """
    of_device = resolve_device(device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    with seeds.kept():
        trainings = [_Training(m, adversary, momentum, of_device, dtype) for m in members]
        losses = [0.0] * len(trainings)
        for epoch in range(1, epochs + 1):
            losses = [training.epoch(epoch, batch_size) for training in trainings]
            progress(1)
    return [
        training.result(epochs, loss, validation)
        for training, loss in zip(trainings, losses, strict=True)
    ]


class _Training:
    def __init__(
        self,
        member: Member,
        adversary: Adversary,
        momentum: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.member, self.adversary = member, adversary
        self.model = member.model.to(device, dtype)
        self.train = member.train.to(device, dtype)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=member.learning_rate,
            momentum=momentum,
            weight_decay=member.weight_decay,
        )
        self.updates = 0

    def epoch(self, epoch: int, batch_size: int) -> float:
        """Go through the training set once; the mean loss."""
        n, seed, every = len(self.train), self.member.seed, self.adversary.every
        order = torch.randperm(n, generator=seeds.generator(seed, "order", epoch))
        plan = order.to(self.train.inputs.device).split(batch_size)
        torch.manual_seed(seeds.derive_seed(seed, "noise", epoch, 0))
        self.model.train()
        total = self.train.inputs.new_zeros(())
        for first in range(0, len(plan), every):
            soon = plan[first : first + every]
            points = self._points(soon, epoch, first)
            for batch, own in zip(soon, points, strict=True):
                inputs = self.train.inputs[batch]
                inputs[: len(own)] = own
                losses = unchecked_losses(
                    None, logits_of(self.model(inputs)), self.train.targets[batch]
                )
                loss = losses.sum() * (1 / len(batch))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.updates += 1
                total += loss.detach() * len(batch)
        return self._finite(float(total) / n, epoch)

    def _points(self, soon: Sequence[Tensor], epoch: int, first: int) -> Sequence[Tensor]:
        """Critical points for each of some batches, by the weights of the moment."""
        counts = [self.adversary.count(batch) for batch in soon]
        chosen = [batch[:count] for batch, count in zip(soon, counts, strict=True)]
        around = self.train.inputs[torch.cat(chosen)]
        if not len(around):
            return around.split(counts)
        try:
            found = find_critical(
                self.model,
                around,
                radius=self.adversary.radius,
                max_steps=self.adversary.steps,
                generator=seeds.generator(self.member.seed, "adversary", epoch, first),
            )
        except ValueError as error:
            if bool(predict(self.model, around).isfinite().all()):
                raise
            raise FloatingPointError(_diverged("a logit", epoch, "not finite")) from error
        return found.points.split(counts)

    def result(self, epoch: int, loss: float, validation: object) -> EpochResult:
        """What the training came to."""
        right = evaluate(self.model, self.train).accuracy
        held_out = evaluate(self.model, validation)
        self._finite(held_out.loss, epoch)
        return EpochResult(
            epoch,
            self.updates,
            self.member.learning_rate,
            loss,
            right,
            held_out.loss,
            held_out.accuracy,
        )

    def _finite(self, loss: float, epoch: int) -> float:
        if not isfinite(loss):
            raise FloatingPointError(_diverged("the mean loss", epoch, loss))
        return loss


def _diverged(name: str, epoch: int, value: float | str) -> str:
    return f"adversarial training diverged: {name} of epoch {epoch} is {value}; lower learning_rate"
