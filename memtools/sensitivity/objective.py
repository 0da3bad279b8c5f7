"""The loss whose sensitivity is asked for, and its gradient at any weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools.sensitivity.examples import Examples
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

    def statistics(self, at: Snapshot) -> dict[str, Tensor]:
        """BatchNorm's running statistics in a state of the training."""
        return self._replay.statistics_in(at.buffers)

    def slope(self, term: int, at: Snapshot) -> Slope:
        """The gradient of a term at a state of the training, the model in eval mode."""
        indices = self.terms[term]
        weights = [w.detach().requires_grad_() for w in self._replay.split(at.vectors[WEIGHT])]
        statistics = {
            name: b.detach().requires_grad_()
            for name, b in self._replay.statistics_in(at.buffers).items()
        }
        shared = [*weights, *statistics.values()]
        total = [torch.zeros_like(s) for s in shared]
        of_inputs = []
        with self._replay.evaluating():
            for part in indices.split(CHUNK):
                x = self._examples.inputs[part].requires_grad_()
                losses, _ = self._replay.losses(
                    weights, at.buffers | statistics, x, self._examples.targets[part]
                )
                *gradients, of_x = torch.autograd.grad(
                    losses.sum() / len(self._examples),
                    [*shared, x],
                    allow_unused=True,
                    materialize_grads=True,
                )
                of_inputs.append(of_x)
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_ += gradient
        return Slope(
            torch.cat([t.reshape(-1) for t in total[: len(weights)]]),
            dict(zip(statistics, total[len(weights) :], strict=True)),
            indices,
            torch.cat(of_inputs) if of_inputs else self._examples.inputs[indices],
        )


def terms_of_classes(targets: Tensor, num_classes: int) -> list[Tensor]:
    """The examples of each class."""
    return [(targets == c).nonzero().flatten() for c in range(num_classes)]
