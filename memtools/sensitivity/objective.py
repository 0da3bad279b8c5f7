"""The loss whose sensitivity is asked for, and its gradient at any weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools.sensitivity.examples import Examples
from memtools.sensitivity.fingerprints import drew_since, random_state
from memtools.sensitivity.quick import Quick
from memtools.sensitivity.replay import Replay
from memtools.sensitivity.storage import Snapshot
from memtools.sensitivity.updates import WEIGHT

__all__ = ["Objective", "Slope"]

CHUNK = 1024
"""Examples that go through the model at once."""


@dataclass(frozen=True)
class Slope:
    """The gradient of a term of the objective.

    Attributes:
        weights: Shape ``(P,)``.
        statistics: With respect to BatchNorm's running statistics.
        indices: Which examples the term is the loss of, shape ``(m,)``.
        inputs: With respect to their inputs, shape ``(m, ...)``.
    """

    weights: Tensor
    statistics: dict[str, Tensor]
    indices: Tensor
    inputs: Tensor


class Objective:
    """Mean loss over a set of examples, or the parts of it that single classes contribute.

    Args:
        replay: The model.
        examples: The set.
        terms: The examples of each term, as index tensors.
    """

    def __init__(self, replay: Replay, examples: Examples, terms: list[Tensor]) -> None:
        self._replay = replay
        self._examples = examples
        self.terms = terms
        self._names: tuple[str, ...] = ()
        self._gradients = Quick(self._gradients_of_losses)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Views of the single weights in flat ones, ``(K, P)``."""
        return self._replay.split(vectors)

    def statistics(self, at: Snapshot) -> dict[str, Tensor]:
        """BatchNorm's running statistics in a state of the training."""
        return self._replay.statistics_in(at.buffers)

    def slope(self, term: int, at: Snapshot) -> Slope:
        """The gradient of a term at a state of the training, the model in eval mode.

        Raises:
            ValueError: If the model draws random numbers in eval mode.
        """
        indices = self.terms[term]
        self._names = tuple(at.buffers)
        weights = self._replay.split(at.vectors[WEIGHT])
        buffers = list(at.buffers.values())
        before = random_state(at.vectors[WEIGHT].device)
        total: list[Tensor] | None = None
        of_inputs = []
        with self._replay.evaluating():
            for part in indices.split(CHUNK):
                inputs, targets = self._examples.at(part)
                *gradients, of_input = self._gradients(*weights, inputs, targets, *buffers)
                of_inputs.append(of_input)
                if total is None:
                    total = gradients
                else:
                    total = [a + b for a, b in zip(total, gradients, strict=True)]
        if drew_since(before, at.vectors[WEIGHT].device):
            raise ValueError(
                "model draws random numbers in eval mode, so that its loss would be one random "
                "draw; make what draws them depend on self.training"
            )
        if total is None:  # a class without examples
            empty = self._examples.inputs[indices]
            zeros = {n: torch.zeros_like(s) for n, s in self.statistics(at).items()}
            return Slope(torch.zeros_like(at.vectors[WEIGHT]), zeros, indices, empty)
        number = len(weights)
        return Slope(
            torch.cat([t.reshape(-1) for t in total[:number]]),
            dict(zip(self.statistics(at), total[number:], strict=True)),
            indices,
            torch.cat(of_inputs) if len(of_inputs) > 1 else of_inputs[0],
        )

    def _gradients_of_losses(self, *tensors: Tensor) -> list[Tensor]:
        """From weights, inputs, targets and buffers to the gradients of a part of the mean loss."""
        number = len(self._replay.names)
        weights = [w.detach().requires_grad_() for w in tensors[:number]]
        x = tensors[number].detach().requires_grad_()
        buffers = dict(zip(self._names, tensors[number + 2 :], strict=True))
        statistics = {
            name: b.detach().requires_grad_()
            for name, b in self._replay.statistics_in(buffers).items()
        }
        losses, _ = self._replay.losses(weights, buffers | statistics, x, tensors[number + 1])
        return list(
            torch.autograd.grad(
                losses.sum() / len(self._examples),
                [*weights, *statistics.values(), x],
                allow_unused=True,
                materialize_grads=True,
            )
        )


def terms_of_classes(targets: Tensor, num_classes: int) -> list[Tensor]:
    """The examples of each class."""
    return [(targets == c).nonzero().flatten() for c in range(num_classes)]
