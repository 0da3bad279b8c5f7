"""What ``torch.optim.SGD`` and ``AdamW`` do, on the weights of a whole stack."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from memtools.training.ensemble.flat import Flat, Slots
from memtools.training.ensemble.member import Member, Settings

__all__ = ["Update", "optimizer", "stacked_update"]

FUSED_DEVICES = ("cpu", "cuda")


class Update(Protocol):
    """An optimiser for a stack.

    Attributes:
        gradients: To be filled before :meth:`step`, which may use it as scratch memory.
    """

    gradients: Tensor

    def step(self) -> None:
        """Update the weights by the gradients."""

    def slots(self, row: int) -> Slots:
        """State of one member."""
        ...


def stacked_update(
    weights: Flat, members: Sequence[Member], slots: Sequence[Slots | None], settings: Settings
) -> Update:
    """The optimiser of a stack.

    Args:
        weights: The weights; updated in place.
        members: Whose learning rates and weight decays.
        slots: State of each member after the updates so far, ``None`` at the beginning.
        settings: Which optimiser.
    """
    rates = {(member.learning_rate, member.weight_decay) for member in members}
    if len(rates) == 1 and weights.vector.device.type in FUSED_DEVICES:
        return _Alike(weights, members[0], slots, settings)
    return _Mixed(weights, members, slots, settings)


def optimizer(
    weights: Sequence[Tensor], member: Member, settings: Settings, *, fused: bool | None = None
) -> Optimizer:
    """The optimiser of one member, by torch."""
    if settings.optimizer == "sgd":
        return SGD(
            weights,
            lr=member.learning_rate,
            momentum=settings.momentum,
            weight_decay=member.weight_decay,
            nesterov=settings.nesterov,
            fused=fused,
        )
    return AdamW(
        weights,
        lr=member.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=member.weight_decay,
        fused=fused,
    )


def _fresh_state(weights: Flat, settings: Settings) -> dict[str, Tensor]:
    if settings.optimizer == "adamw":
        return {"exp_avg": weights.like(), "exp_avg_sq": weights.like()}
    return {"momentum_buffer": weights.like()} if settings.momentum else {}


class _Alike:
    """For members of one learning rate and weight decay: torch's own, in one pass over memory."""

    def __init__(
        self, weights: Flat, member: Member, slots: Sequence[Slots | None], settings: Settings
    ) -> None:
        self._weights = weights
        self.gradients = weights.vector.grad = weights.like()
        self._optimizer = optimizer([weights.vector], member, settings, fused=True)
        self._state = _fresh_state(weights, settings)
        self._step = weights.load_slots(slots, self._state)
        state = self._optimizer.state[weights.vector]
        state.update(self._state)
        if settings.optimizer == "adamw":
            state["step"] = torch.tensor(float(self._step), device=weights.vector.device)

    def slots(self, row: int) -> Slots:
        return self._weights.slots(row, self._state, self._step)

    def step(self) -> None:
        self._step += 1
        self._optimizer.step()


class _Mixed:
    """For members that differ in learning rate or weight decay."""

    def __init__(
        self,
        weights: Flat,
        members: Sequence[Member],
        slots: Sequence[Slots | None],
        settings: Settings,
    ) -> None:
        self._weights, self._settings = weights, settings
        self.gradients = weights.like()
        self._scratch = weights.like() if settings.optimizer == "adamw" else weights.vector[:0]
        self._state = _fresh_state(weights, settings)
        self._step = weights.load_slots(slots, self._state)
        self._rate = self._column([m.learning_rate for m in members])
        self._decay = self._column([m.weight_decay for m in members])
        self._shrink = self._column([1 - m.learning_rate * m.weight_decay for m in members])
        self._decays = any(m.weight_decay for m in members)

    def slots(self, row: int) -> Slots:
        return self._weights.slots(row, self._state, self._step)

    def step(self) -> None:
        self._step += 1
        if self._settings.optimizer == "sgd":
            self._sgd()
        else:
            self._adamw()

    def _sgd(self) -> None:
        gradients, settings = self.gradients, self._settings
        if self._decays:
            self._add(gradients, self._weights.vector, self._decay)
        if settings.momentum:
            momentum = self._state["momentum_buffer"]
            momentum.mul_(settings.momentum).add_(gradients)
            if settings.nesterov:
                gradients.add_(momentum, alpha=settings.momentum)
            else:
                gradients = momentum
        self._add(self._weights.vector, gradients, self._rate, -1)

    def _adamw(self) -> None:
        gradients, settings = self.gradients, self._settings
        first, second = self._state["exp_avg"], self._state["exp_avg_sq"]
        beta1, beta2 = settings.betas
        if self._decays:
            for block in self._weights.blocks(self._weights.vector):
                block.mul_(self._shrink)
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        denominator = torch.sqrt(second, out=self._scratch)
        denominator.div_((1 - beta2**self._step) ** 0.5).add_(settings.eps)
        torch.div(first, denominator, out=gradients)
        self._add(self._weights.vector, gradients, self._rate, -1 / (1 - beta1**self._step))

    def _column(self, values: Sequence[float]) -> Tensor:
        vector = self._weights.vector
        return torch.tensor(values, dtype=vector.dtype, device=vector.device).unsqueeze(1)

    def _add(self, to: Tensor, what: Tensor, factor: Tensor, times: float = 1) -> None:
        """Add each member's part of one vector to another, times the member's factor."""
        blocks = self._weights.blocks
        for block, other in zip(blocks(to), blocks(what), strict=True):
            block.addcmul_(other, factor, value=times)
