"""The training of an ensemble."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Literal

import torch

from memtools import seeds
from memtools.batch import LossFunction, check_targets
from memtools.data import Tensors
from memtools.training.devices import resolve_device
from memtools.training.ensemble.auto import choose
from memtools.training.ensemble.engines import Group
from memtools.training.ensemble.grouping import groups
from memtools.training.ensemble.member import Member, Settings, check_members
from memtools.training.ensemble.state import State
from memtools.training.ensemble.table import prepared
from memtools.training.evaluation import Evaluation
from memtools.training.run import EpochResult

__all__ = ["train_ensemble"]

REBUILDING = 5
"""Updates in whose time the stacks can be built anew."""


def train_ensemble(
    members: Sequence[Member],
    *,
    epochs: int = 10,
    batch_size: int = 128,
    updates_per_epoch: int | None = None,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    validation: Tensors | None = None,
    loss_fn: LossFunction | None = None,
    evaluate_every: int = 1,
    stop_at_train_accuracy: float | None = None,
    engine: Literal["auto", "loop", "vmap", "fused"] = "auto",
    device: str | torch.device = "auto",
    precision: Literal["float32", "float64"] = "float32",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[EpochResult]]:
    """Train many models at once, each as :class:`memtools.training.Trainer` trains it alone.

    Order of the examples, dropout and noise of a member follow from its own seed, as in
    ``Trainer``: it does not matter which others are in the ensemble. Members may differ in
    everything; those that have the architecture and the number of examples in common run together.
    The engines differ in rounding only. ``"auto"`` takes the one that is measured to be fastest
    here and now, so a result that is to be reproduced bit for bit names its engine (and is made
    with the same members, number of threads and machine).

    Args:
        members: The models and their training sets; the models are trained in place.
        epochs: Epochs at most.
        batch_size: Examples of an update.
        updates_per_epoch: ``None``: an epoch goes through the training set once, in the
            ``Trainer``'s order, and its last batch may be smaller. A number: an epoch is so many
            updates on full batches (of all examples, if there are fewer) from a stream of
            permutations, the k-th of them drawn from ``seeds.generator(seed, "pass", k)``, k = 1,
            2, ...; a batch may take the end of one and the beginning of the next. So members with
            training sets of different sizes take the same updates, and can run together.
        optimizer: ``"sgd"`` or ``"adamw"``, by the formulas of ``torch.optim``.
        momentum: Of SGD.
        nesterov: Whether it is Nesterov's.
        betas: Of AdamW.
        eps: Of AdamW.
        validation: Evaluated together with the training sets, the same for all members.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy. Their mean is minimised.
        evaluate_every: Epochs from one result to the next; the last epoch always has one.
        stop_at_train_accuracy: A member stops after the first evaluated epoch that reaches this
            training accuracy.
        engine: ``"loop"`` trains one member after the other, and takes every model. ``"vmap"``
            runs them as one by ``torch.func``. ``"fused"`` does so for ``memtools.models.MLP`` and
            ``nn.Sequential`` of Linear, ReLU, Flatten, Dropout, GaussianNoise and Identity under
            cross-entropy, without autograd. ``"auto"`` measures for each architecture (a training
            too short to be worth it is ``"fused"`` where that can be, else ``"loop"``, and on one
            thread if the models are small).
        device: ``"auto"``, ``"cpu"``, ``"cuda:0"``, ... Elsewhere than on the CPU, dropout and
            noise of the stacked engines are not the ``Trainer``'s, but follow from the seed too.
        precision: ``"float32"`` or ``"float64"``; models and inputs are cast.
        checkpoint: File for the state, written after an epoch whenever that costs little beside
            the training, and at the end. If it exists, the training goes on from it.
        progress: Called after each epoch of the ensemble with the number of epochs newly done;
            first of all with those in the checkpoint, if there are any.

    Returns:
        The results of each member, one for each evaluated epoch.

    Raises:
        TypeError: If a member or a data set is something else.
        ValueError: If data are empty, a setting is out of range, members have weights in common,
            the engine cannot train a model, or the checkpoint belongs to another run.
        FloatingPointError: If the training of a member diverges.
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        updates_per_epoch=updates_per_epoch,
        optimizer=optimizer,
        momentum=momentum,
        nesterov=nesterov,
        betas=betas,
        eps=eps,
        loss_fn=loss_fn,
        evaluate_every=evaluate_every,
        stop_at_train_accuracy=stop_at_train_accuracy,
        engine=engine,
        precision=precision,
        device=resolve_device(device),
    )
    members = list(members)
    check_members(members, validation)
    with seeds.kept(), _threads_kept():
        return _Ensemble(members, validation, settings, checkpoint).train(progress)


class _Ensemble:
    def __init__(
        self,
        members: list[Member],
        validation: Tensors | None,
        settings: Settings,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.members, self.settings = members, settings
        for member in members:
            member.model.to(settings.device, settings.dtype)
        data = [member.train for member in members] + ([validation] if validation else [])
        sets = prepared(data, settings.device, settings.dtype)
        self.held_out = sets.pop() if validation else None
        self.groups = [
            Group([members[i] for i in numbers], numbers, [sets[i] for i in numbers], settings)
            for numbers in groups(members, sets, settings)
        ]
        self.state = State(members, settings, checkpoint)
        for group in self.groups:
            self._check(group)

    def _check(self, group: Group) -> None:
        classes = group.num_classes()
        for targets in {id(t): t for _, t in group.sets}.values():
            check_targets(targets, classes)
        if self.held_out is not None:
            check_targets(self.held_out[1], classes)
        if self.settings.engine != "auto":
            obstacle = group.obstacle(self.settings.engine)
            if obstacle is not None:
                raise ValueError(
                    f"engine={self.settings.engine!r} cannot train members{group.numbers[:3]}: "
                    f"{obstacle}; use engine='loop', which trains any model, or 'auto'"
                )

    def train(self, progress: Callable[[int], None] | None) -> list[list[EpochResult]]:
        state = self.state
        done = state.resume(self.groups)
        if done and progress:
            progress(done)
        for group in self.groups:
            if not group.engine:
                group.engine, group.threads = choose(group)
                group.build(group.parts(range(len(group.members))), [None] * len(group.members))
        threads = torch.get_num_threads()
        try:
            for epoch in range(done + 1, self.settings.epochs + 1):
                if not any(group.stacks for group in self.groups):
                    break
                for group in self.groups:
                    torch.set_num_threads(group.threads or threads)
                    self._train_epoch(group, epoch)
                state.save(self.groups, epoch)
                if progress:
                    progress(1)
        finally:
            for group in self.groups:
                state.collect(group)
            for member in self.members:
                member.model.train()
                member.model.zero_grad()
        return state.results

    def _train_epoch(self, group: Group, epoch: int) -> None:
        settings = self.settings
        for stack in group.stacks:
            rows = self.state.rows(group, stack)
            total, count = stack.train_epoch(epoch)
            losses = [value / count for value in total.tolist()]
            for row, number in rows.items():
                _finite(losses[row], "mean loss", number, epoch)
            group.wasted += (len(stack.members) - len(rows)) * settings.updates(count)
            if not settings.is_evaluated(epoch):
                continue
            train = stack.evaluate(None)
            held_out: Sequence[Evaluation | None] = [None] * len(train)
            if self.held_out is not None:
                held_out = stack.evaluate(self.held_out)
            for row, number in rows.items():
                result = self._result(number, epoch, losses[row], train[row], held_out[row])
                goal = settings.stop_at_train_accuracy
                if goal is not None and result.train_accuracy >= goal:
                    stack.write_back([row])
                    self.state.left[number] = True
                self.state.results[number].append(result)
        self._compact(group)

    def _compact(self, group: Group) -> None:
        """Take those out of the stacks that have left, once they have cost as much as that does."""
        state = self.state
        group.stacks = [stack for stack in group.stacks if state.rows(group, stack)]
        present = sum(len(stack.members) for stack in group.stacks)
        if group.wasted < REBUILDING * present or not group.wasted:
            return
        state.collect(group)
        places = [place for place, number in enumerate(group.numbers) if not state.left[number]]
        group.build(group.parts(places), [state.slots[number] for number in group.numbers])
        group.wasted = 0

    def _result(
        self, number: int, epoch: int, loss: float, train: Evaluation, held_out: Evaluation | None
    ) -> EpochResult:
        _finite(train.accuracy, "training accuracy", number, epoch)
        member = self.members[number]
        updates = epoch * self.settings.updates(len(member.train))
        rate = float(member.learning_rate)
        if held_out is None:
            return EpochResult(epoch, updates, rate, loss, train.accuracy)
        _finite(held_out.loss, "validation loss", number, epoch)
        return EpochResult(
            epoch, updates, rate, loss, train.accuracy, held_out.loss, held_out.accuracy
        )


def _finite(loss: float, name: str, number: int, epoch: int) -> None:
    if not isfinite(loss):
        raise FloatingPointError(
            f"training of members[{number}] diverged: the {name} of epoch {epoch} is {loss}; "
            "lower its learning rate"
        )


@contextmanager
def _threads_kept() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
