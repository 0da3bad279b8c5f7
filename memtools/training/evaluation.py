"""Loss and accuracy over a data set."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memtools import scores
from memtools.batch import LossFunction, check_finite, per_example_losses
from memtools.guard import untouched
from memtools.training.batches import batches
from memtools.training.devices import Ranks

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set: loss, and share of examples classified correctly."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int = 1024,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    workers: int = 0,
) -> Evaluation:
    """Mean loss and accuracy in eval mode; the model stays as it was.

    Args:
        model: Maps inputs to logits; it is used on the device and in the dtype it has.
        dataset: Map-style; items ``(input, target)`` or ``(input, target, index)``.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        batch_size: Examples a pass over all processes.
        ranks: This process among those that share the work.
        workers: Processes that load data.

    Returns:
        An :class:`Evaluation`, the same on every process.

    Raises:
        ValueError: If the data set is empty or targets are out of range.
        FloatingPointError: If logits are not finite.
    """
    if len(dataset) == 0:
        raise ValueError("dataset is empty; at least one example is needed")
    weight = next(model.parameters(), torch.empty(0))
    totals = torch.zeros(3, dtype=torch.float64)
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        for batch in batches(
            dataset,
            torch.arange(len(dataset)),
            batch_size,
            device=weight.device,
            dtype=weight.dtype,
            ranks=ranks,
            workers=workers,
        ):
            if not batch.counts:
                continue
            logits = forward(batch.inputs)
            try:
                check_finite(logits)
            except ValueError as error:
                raise FloatingPointError(str(error)) from error
            losses = per_example_losses(loss_fn, logits, batch.targets)
            right = scores.correctness(logits, batch.targets)
            sums = [float(losses.sum()), float(right.sum()), len(losses)]
            totals += torch.tensor(sums, dtype=torch.float64)
    loss, right, count = ranks.sum(totals).tolist()
    return Evaluation(loss / count, right / count)
