"""From a group of members to the stacks of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from memtools import seeds
from memtools.guard import logits_of, untouched
from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.fused import Fused, fused_obstacle
from memtools.training.ensemble.loop import Loop
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.order import batch_sizes
from memtools.training.ensemble.probe import Probe
from memtools.training.ensemble.stack import Stack
from memtools.training.ensemble.table import Table
from memtools.training.ensemble.vmapped import Vmapped

__all__ = ["Group"]

STACK_BYTES = 2**24
"""What the weights, gradients and activations of a stack may take: it stays in the cache while it
goes through an epoch."""


@dataclass
class Group:
    """Members of one architecture.

    Attributes:
        members: The members.
        numbers: Their numbers in the ensemble.
        sets: Their inputs and targets, on the device.
        settings: What all members of the ensemble share.
        engine: What trains them, once it is chosen.
        threads: How many threads it uses, 0 for as many as there are.
        stacks: Those that train; members that have left may still be in them.
        wasted: Updates of members that have left, since the stacks were built.
    """

    members: list[Member]
    numbers: list[int]
    sets: list[tuple[Tensor, Tensor]]
    settings: Settings
    engine: str = ""
    threads: int = 0
    stacks: list[Stack] = field(default_factory=list)
    wasted: int = 0

    def __post_init__(self) -> None:
        self.table = Table(dict(enumerate(self.sets)))
        inputs, targets = self.sets[0]
        self._sizes = sorted(set(batch_sizes(len(inputs), self.settings)))
        self._probe: Probe | None = None
        self._inputs, self._targets = inputs, targets

    @property
    def probe(self) -> Probe:
        """What is known about the architecture."""
        if self._probe is None:
            model = self.members[0].model
            self._probe = Probe(
                model, self._inputs, self._targets, self._sizes, self.settings.loss_fn
            )
        return self._probe

    def obstacle(self, engine: str) -> str | None:
        """Why an engine cannot train this group, ``None`` if it can."""
        if engine == "loop":
            return None
        model = self.members[0].model
        if engine == "fused":
            if self.settings.loss_fn is not None:
                return "loss_fn is not the cross-entropy"
            return fused_obstacle(model, self._inputs) or self.probe.obstacle
        if self.probe.obstacle is not None:
            return self.probe.obstacle
        try:
            self._try_vmap()
        except Exception as error:  # whatever a user's module raises under vmap
            text = str(error).strip().split("\n")[0]
            return f"{type(model).__name__} does not run under torch.func.vmap ({text})"
        return None

    def _try_vmap(self) -> None:
        with seeds.kept():
            stack = self.stack("vmap", [0], [None])
            assert isinstance(stack, Vmapped)
            for size in self._sizes:
                stack.start(1)
                rows = torch.arange(size, device=self.table.inputs.device).unsqueeze(0)
                stack.step(rows, self._targets[rows].long())
                stack.logits(stack.batch(rows))

    def parts(self, places: Sequence[int], engine: str | None = None) -> list[list[int]]:
        """Members of the group, cut into those that an engine trains together."""
        size = self.stack_size(engine or self.engine)
        count = -(-len(places) // size)
        # Of nearly the same size: a stack takes its time also for a few members.
        cuts = [len(places) * i // max(count, 1) for i in range(count + 1)]
        return [list(places[start:end]) for start, end in pairwise(cuts)]

    def build(self, parts: Sequence[Sequence[int]], slots: Sequence[Slots | None]) -> None:
        """Go on with some members.

        Args:
            parts: Their places, those of each stack.
            slots: States of the optimisers of all members by their places, ``None`` at the
                beginning.
        """
        self.stacks = [
            self.stack(self.engine, places, [slots[place] for place in places]) for places in parts
        ]

    def stack_size(self, engine: str) -> int:
        """Members that an engine trains together."""
        if engine == "loop":
            return 1
        if self.settings.device.type != "cpu":
            return len(self.members)
        model = self.members[0].model
        weights = sum(p.numel() for p in model.parameters())
        state = {"sgd": 2 + (self.settings.momentum > 0), "adamw": 5}[self.settings.optimizer]
        widths = sum(p.shape[0] for p in model.parameters() if p.ndim == 2)
        activations = self._sizes[-1] * (self._inputs[0].numel() + 2 * widths)
        own = (weights * state + activations) * self.settings.dtype.itemsize
        return max(1, STACK_BYTES // own)

    def stack(self, engine: str, places: Sequence[int], slots: Sequence[Slots | None]) -> Stack:
        """A stack of its own, which the group does not know."""
        members = [self.members[p] for p in places]
        if engine == "loop":
            # A table of its own keeps the layout of the inputs, by which noise is drawn.
            table = Table({places[0]: self.sets[places[0]]})
            return Loop(members, places, table, self.settings, slots)
        kind = {"vmap": Vmapped, "fused": Fused}[engine]
        return kind(members, places, self.table, self.settings, self.probe, slots)

    def num_classes(self) -> int:
        """Length of the logits."""
        with untouched(self.members[0].model, evaluating=True) as forward, torch.no_grad():
            return logits_of(forward(self._inputs[:1])).shape[-1]
