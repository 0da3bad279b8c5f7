"""How long a training takes until it fits its examples."""

import math
import operator
from typing import Any

import torch
from torch import Tensor

from memtools.metrics.base import SettledMetric
from memtools.scores import correctness

__all__ = ["TimeToConvergence"]


class TimeToConvergence(SettledMetric):
    r"""Epochs and updates until the training accuracy of an epoch reaches a threshold.

    .. math:: T = \min \{ e : \mathrm{accuracy}_e \ge \tau \}

    Arpit et al. (2017), section 3.3.2, with :math:`\tau` = 100%. A run that has not got there is
    right-censored: its time is infinite, ``is_censored`` is 1, and ``epochs_run`` and
    ``updates_run`` say how long it was watched, which a survival analysis needs. It is never left
    out of a mean by accident.

    ``update`` takes the logits of a batch, ``end_epoch`` closes the epoch; an epoch that is under
    way decides nothing. In a process group every process has to call ``end_epoch``, which adds up
    their parts. Take the logits of the training steps, or of a pass over the training set in eval
    mode after each epoch (the paper does not say which), and tell ``end_epoch`` the number of
    optimiser steps in the latter case.

    In Lightning, call ``end_epoch`` in ``on_train_epoch_end`` and log what ``compute`` returns, not
    the metric: Lightning would reset it in each epoch. ``persistent(True)`` puts it into
    checkpoints.

    Args:
        threshold: The accuracy :math:`\tau`, above 0 and at most 1.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If ``threshold`` is out of range.

    Example:
        >>> import torch
        >>> from memtools.metrics import TimeToConvergence
        >>> metric, targets = TimeToConvergence(), torch.tensor([0, 1])
        >>> for logits in (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)):
        ...     metric.update(logits, targets)
        ...     metric.end_epoch()
        >>> result = metric.compute()
        >>> float(result["epochs"]), bool(result["is_censored"])
        (2.0, False)
    """

    # A batch of its own says nothing of the updates before it.
    full_state_update: bool | None = True

    correct: Tensor
    seen: Tensor
    epochs: Tensor
    updates: Tensor
    first_epoch: Tensor
    first_update: Tensor

    def __init__(self, threshold: float = 1.0, **kwargs: Any) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(
                f"threshold must be above 0 and at most 1, got {threshold}; 95% is 0.95"
            )
        super().__init__({"threshold": threshold}, **kwargs)
        self.threshold = threshold
        none, never = torch.tensor(0), torch.tensor(math.inf, dtype=torch.float64)
        self.add_state("correct", none, "sum")
        self.add_state("seen", none, "sum")
        # Processes step together; one without a batch counts fewer.
        self.add_state("epochs", none, "max")
        self.add_state("updates", none, "max")
        self.add_state("first_epoch", never, "min")
        self.add_state("first_update", never, "min")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch of the epoch under way, and one update.

        Args:
            logits: Shape ``(n, C)``.
            targets: Class numbers of shape ``(n,)``.

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
                The metric is unchanged then.
        """
        right = correctness(logits, targets).sum().to(self.correct)
        self.correct, self.seen = self.correct + right, self.seen + len(targets)
        self.updates = self.updates + 1

    def end_epoch(self, updates: int | None = None) -> None:
        """Close the epoch: the accuracy over its batches, of all processes, is compared.

        Args:
            updates: Optimiser steps so far in the whole training; ``None`` counts the calls of
                ``update``, one for each batch.

        Raises:
            TypeError: If ``updates`` is no integer.
            ValueError: If there was no batch since the last epoch, or ``updates`` is negative. The
                metric is unchanged then.
        """
        if updates is not None and operator.index(updates) < 0:
            raise ValueError(
                f"updates must not be negative, got {updates}; it counts the optimiser's steps"
            )
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            correct, seen, counted = int(self.correct), int(self.seen), int(self.updates)
        if not seen:
            raise ValueError(
                "end_epoch needs a batch since the last epoch, got none; call update in each step"
            )
        steps = counted if updates is None else operator.index(updates)
        self._computed = None
        self.epochs = self.epochs + 1
        self.updates = torch.full_like(self.updates, steps)
        if correct / seen >= self.threshold and bool(self.first_epoch.isinf()):
            self.first_epoch = self.epochs.to(self.first_epoch)
            self.first_update = self.updates.to(self.first_update)
        self.correct, self.seen = torch.zeros_like(self.correct), torch.zeros_like(self.seen)

    def compute(self) -> dict[str, Tensor]:
        """What is known so far.

        Returns:
            Scalars, float64, as loggers want them: ``epochs`` and ``updates`` until convergence,
            infinite for a run that has not converged; ``is_censored``, 1 if that is so and 0
            otherwise; ``epochs_run`` and ``updates_run``, how many were watched. The value of a
            single batch, which is no epoch, is censored.
        """
        return {
            "epochs": self.first_epoch,
            "updates": self.first_update,
            "is_censored": self.first_epoch.isinf().to(self.first_epoch),
            "epochs_run": self.epochs.to(self.first_epoch),
            "updates_run": self.updates.to(self.first_epoch),
        }

    def merge_state(self, incoming_state: Any) -> None:
        """Not possible: each of two parts of a run has judged its epochs by its own examples.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "TimeToConvergence cannot be merged, since each part has judged its epochs by its own "
            "examples; use a process group, in which end_epoch adds the parts up"
        )

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the numbers of one run, or of several in their order; needs matplotlib.

        Args:
            val: A result of ``compute``, or a list of them; ``None`` computes.
            ax: Axes to draw in.

        Returns:
            Figure and axes; what is infinite is not drawn.
        """
        return self._plot(val, ax)
