"""A recorded training, replayed from the last update to the first, and checked on the way."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from memtools.sensitivity.examples import Examples
from memtools.sensitivity.fingerprints import size_of, state_of, weights_of
from memtools.sensitivity.own_update import OwnUpdate
from memtools.sensitivity.products import Gradient, Point, Products
from memtools.sensitivity.quick import ROUNDINGS
from memtools.sensitivity.storage import Snapshot
from memtools.sensitivity.tape import TrainingTape
from memtools.sensitivity.updates import WEIGHT, PullBack, Slice, Vectors

__all__ = ["History", "Update"]

SPREAD = 8
"""Standard deviations within which a random projection is expected."""


@dataclass(frozen=True)
class Update:
    """One update, to be gone through backwards.

    Attributes:
        indices: Which examples the batch held, shape ``(b,)``.
        gradient: The gradient of the batch's loss.
        pull_back: From adjoints after the update to those before, and the gradient's.
    """

    indices: Tensor
    gradient: Gradient
    pull_back: PullBack


class History:
    """The states and updates of a recorded training.

    Args:
        tape: What was recorded.
        examples: The data set of the training.
        products: For the gradients.
    """

    def __init__(self, tape: TrainingTape, examples: Examples, products: Products) -> None:
        self._tape = tape
        self._examples = examples
        self._products = products
        self._states: dict[int, Snapshot] = {}
        self._is_searching = False
        self._drift: dict[int, float] = {}
        self._linear: tuple[tuple[Slice, ...], PullBack] | None = None
        self._recorded = torch.stack([step.fingerprint for step in tape.steps]).tolist()
        norms = [recorded[2] for recorded in self._recorded]
        for number, norm in enumerate(norms, 1):
            if not isfinite(norm):
                raise ValueError(
                    f"update {number} had a gradient that was NaN or infinite: the training had "
                    "diverged; record one with a lower learning rate"
                )
        self._epsilon = torch.finfo(tape.dtype).eps
        # The gradient of a fitted model is a sum that cancels: its rounding error is of the size
        # of the largest gradients, not of its own.
        self._error = ROUNDINGS * self._epsilon * max(norms)

    def state(self, updates: int) -> Snapshot:
        """Weights, the optimiser's state and buffers after so many updates."""
        if updates in self._states:
            return self._states[updates]
        kept = min(updates, len(self._tape) - 1) // self._tape.every * self._tape.every
        # Going backwards, later stretches are not needed again.
        self._states = {kept: self._tape.storage.get(kept, self._tape.device)}
        for number in range(kept + 1, updates + 1):
            gradient = self._gradient(number)
            self._states[number] = self._after(number, gradient)
        return self._states[updates]

    def update(self, number: int) -> Update:
        """An update, replayed from the state before it.

        Raises:
            ValueError: If the replay does not give what was recorded.
        """
        before = self.state(number - 1)
        gradient = self._gradient(number)
        if number % self._tape.every == 0:
            self._after(number, gradient)  # for its check alone: the next state is kept
        slices = self._tape.steps[number - 1].slices
        if self._linear is not None and self._linear[0] is slices:
            pull_back = self._linear[1]
        else:
            pull_back = self._tape.rule.pull_back(before.vectors, gradient.value, slices)
            if self._tape.rule.is_linear:
                self._linear = (slices, pull_back)
        return Update(self._indices(number), gradient, pull_back)

    def _indices(self, number: int) -> Tensor:
        return self._examples.indices(self._tape.steps[number - 1].indices, number)

    def _gradient(self, number: int) -> Gradient:
        step, before = self._tape.steps[number - 1], self.state(number - 1)
        indices = self._indices(number)
        point = Point(before.vectors[WEIGHT], before.buffers, *self._examples.at(indices))
        try:
            gradient = self._products.at(step, point)
            if self._is_recorded(number, gradient):
                return gradient
            # What the recorded program has taken for constant may have changed since.
            gradient = self._products.plainly_at(step, point)
        except ValueError as error:
            raise ValueError(f"update {number} cannot be replayed: {error}") from error
        if self._is_recorded(number, gradient):
            return gradient
        self._check_those_before(number)
        raise ValueError(self._complaint(number, gradient))

    def _check_those_before(self, number: int) -> None:
        """Raise for the first update that is wrong: the error that helps most."""
        if not self._is_searching:
            self._is_searching = True
            for earlier in range(1, number):
                self._after(earlier, self._gradient(earlier))

    def _allowed(self, number: int) -> float:
        """How far off a gradient may be, in norm: more with every update since kept weights."""
        return self._error * (1 + (number - 1) % self._tape.every)

    def _is_recorded(self, number: int, gradient: Gradient) -> bool:
        if isinstance(self._tape.rule, OwnUpdate):
            return True  # which may do to the recorded gradient what it likes
        projected, norm = self._recorded[number - 1][1:3]
        allowed = self._allowed(number)
        value = self._used(number, gradient)
        # Written so that NaN is a difference.
        return (
            abs(float(value @ self._tape.probe) - projected) <= SPREAD * allowed
            and abs(float(torch.linalg.vector_norm(value)) - norm) <= allowed
        )

    def _used(self, number: int, gradient: Gradient) -> Tensor:
        """The gradient, zero where there was none for the optimiser."""
        value = gradient.value
        for part in self._tape.steps[number - 1].slices:
            if part.options is None:
                value = value.clone()
                value[part.start : part.stop] = 0
        return value

    def _complaint(self, number: int, gradient: Gradient) -> str:
        norm = float(self._used(number, gradient).norm())
        recorded = self._recorded[number - 1][2]
        size = len(self._tape.steps[number - 1].indices)
        hint = (
            "is data the set of the training, in its order, with its labels and unaugmented; is "
            "loss_fn that of the training; were gradients neither clipped nor scaled before "
            "record; does the model draw its random numbers from torch alone?"
        )
        if (number - 1) % self._tape.every:
            hint += (
                " Or have rounding errors grown since the last kept weights (Adam blows them up "
                "where a gradient is zero)? Then record with a smaller every"
            )
        factor, other = (size, "sum") if self._tape.reduction == "mean" else (1 / size, "mean")
        if size > 1 and abs(recorded - factor * norm) <= 1e-3 * recorded:
            hint = f'the training seems to use reduction="{other}"'
        return (
            f"update {number} cannot be replayed: the gradient of its batch has norm {norm:.6g}, "
            f"recorded was another one of norm {recorded:.6g}; {hint}"
        )

    def _after(self, number: int, gradient: Gradient) -> Snapshot:
        """The state after an update, checked against what was recorded of the next."""
        rule, step, before = self._tape.rule, self._tape.steps[number - 1], self.state(number - 1)
        vectors = rule.apply(before.vectors, gradient.value, step.slices)
        if number < len(self._tape):
            self._check_vectors(number, before, gradient, vectors)
            self._check_buffers(number, before, gradient, vectors)
        return Snapshot(vectors, gradient.buffers)

    def _check_vectors(
        self, number: int, before: Snapshot, gradient: Gradient, after: Vectors
    ) -> None:
        tape = self._tape
        recorded = (self._recorded[number][0], self._recorded[number][4])
        stretch = 1 + (number - 1) % tape.every
        for which, expected in zip((weights_of, state_of), recorded, strict=True):
            vector = which(after)
            difference = abs(float(vector @ tape.probe) - expected)
            allowed = self._epsilon * (64 * stretch + len(vector) ** 0.5)
            allowed *= float(torch.linalg.vector_norm(vector))
            if difference <= SPREAD * allowed:
                continue
            shift = which(self._shifted(number, before, gradient)) - vector
            if difference <= SPREAD * (allowed + abs(float(shift @ tape.probe))):
                continue
            self._check_those_before(number)
            what = "weights" if which is weights_of else "state of the optimiser"
            raise ValueError(
                f"update {number} does not lead to the {what} that update {number + 1} began "
                "with: it was changed between the two, an update was not recorded, or the "
                "optimiser's settings changed after record; record every update, and change "
                "weights only by optimizer.step()"
            )

    def _shifted(self, number: int, before: Snapshot, gradient: Gradient) -> Vectors:
        """What an update gives for a gradient that is as far off as it may be.

        Adam divides a gradient by its own size: one that is nothing but rounding error, as of a
        bias before a BatchNorm, moves a weight as far as any other.
        """
        error = self._allowed(number) / len(gradient.value) ** 0.5
        moved = gradient.value + error * self._tape.probe
        return self._tape.rule.apply(before.vectors, moved, self._tape.steps[number - 1].slices)

    def _check_buffers(
        self, number: int, before: Snapshot, gradient: Gradient, after: Vectors
    ) -> None:
        recorded = self._recorded[number][3]
        if not recorded:
            return
        is_first = (number - 1) % self._tape.every == 0
        shift = weights_of(self._shifted(number, before, gradient)) - weights_of(after)
        drift = 0.0 if is_first else self._drift.get(number - 1, 0.0)
        # Statistics move with the weights.
        self._drift[number] = drift + float(torch.linalg.vector_norm(shift))
        allowed = ROUNDINGS * self._epsilon * recorded + SPREAD * drift
        if not abs(float(size_of(gradient.buffers)) - recorded) <= allowed:
            self._check_those_before(number)
            raise ValueError(
                f"update {number} does not lead to the buffers that update {number + 1} began "
                "with: the statistics of a BatchNorm were changed between the two, for instance "
                "by a forward pass in train mode that was no part of the training"
            )
