"""The engine that runs any model for several members at once, by ``torch.func``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from memtools.batch import unchecked_losses
from memtools.guard import logits_of
from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.probe import Probe
from memtools.training.ensemble.stacked import Stacked, cross_entropies
from memtools.training.ensemble.table import Table

__all__ = ["Vmapped"]


class Vmapped(Stacked):
    """A stack whose forward pass is vmapped over the members.

    Autograd goes through the batched operations once, which is faster than a gradient of each
    member inside of vmap.
    """

    def __init__(
        self,
        members: Sequence[Member],
        places: Sequence[int],
        table: Table,
        settings: Settings,
        probe: Probe,
        slots: Sequence[Slots | None],
    ) -> None:
        super().__init__(
            members,
            places,
            table,
            settings,
            slots=slots,
            trainable=probe.trainable,
            draws=probe.draws,
        )
        self._probe, self._template = probe, probe.template
        # Leaves for autograd on the memory of the weights, which the update changes in place.
        self._leaves = {n: v.detach().requires_grad_() for n, v in self.weights.views.items()}
        self._fixed = dict(self.weights.others)
        buffers = [dict(member.model.named_buffers()) for member in members]
        for name in buffers[0]:
            self._fixed[name] = torch.stack([b[name] for b in buffers])

    def start(self, epoch: int) -> None:
        """Go to the beginning of the random streams of an epoch."""
        super().start(epoch)
        self._template.train()

    def step(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Take one update."""
        noise = self.noise.draw(rows.shape[1])
        if self.settings.loss_fn is None:
            losses = cross_entropies(self._call(self.batch(rows), noise), targets)
        else:
            losses = self._call(self.batch(rows), noise, targets)
        means = losses.sum(1) * (1 / targets.shape[1])
        gradients = torch.autograd.grad(means.sum(), list(self._leaves.values()))
        for view, gradient in zip(self.gradients.values(), gradients, strict=True):
            view.copy_(gradient)
        self.update.step()
        return means.detach()

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits in eval mode."""
        self._template.eval()
        return self._call(inputs, [])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses of the single examples."""
        if self.settings.loss_fn is None:
            return cross_entropies(logits, targets)
        return vmap(lambda z, t: unchecked_losses(self.settings.loss_fn, z, t))(logits, targets)

    def _call(self, inputs: Tensor, noise: list[Tensor], targets: Tensor | None = None) -> Tensor:
        """Logits, or losses if there are targets, with a leading dimension of the members."""

        def one(
            leaves: dict[str, Tensor],
            fixed: dict[str, Tensor],
            x: Tensor,
            given: list[Tensor],
            labels: Tensor | None,
        ) -> Any:
            self._probe.modules.give(given)
            logits = logits_of(functional_call(self._template, (leaves, fixed), (x,)))
            if labels is None:
                return logits
            return unchecked_losses(self.settings.loss_fn, logits, labels)

        in_dims = (0, 0, 0, 0, None if targets is None else 0)
        return vmap(one, in_dims)(self._leaves, self._fixed, inputs, noise, targets)
