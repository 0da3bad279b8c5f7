"""Scores of single examples, from their logits and from their history over a training."""

import torch
from memtools_kernels import LogitScores, logit_scores
from torch import Tensor

from memtools.batch import check_logits, check_targets

__all__ = [
    "confidence",
    "correctness",
    "el2n",
    "forgetting_events",
    "learning_time",
    "loss",
    "margin",
]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy ``-log p_y`` of every example; its sum over a training is the CSL score.

    Args:
        logits: Shape ``(n, C)``.
        targets: Class numbers of shape ``(n,)``.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 logits), nats; higher is harder.

    Raises:
        ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
    """
    return _scores(logits, targets).loss


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability ``p_y`` of the label (dataset cartography, Swayamdipta et al. 2020).

    Args:
        logits: Shape ``(n, C)``.
        targets: Class numbers of shape ``(n,)``.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 logits), 0 to 1; lower is harder.

    Raises:
        ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
    """
    return _scores(logits, targets).probability


def correctness(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest logit is the label's; of equal ones, the first counts.

    Args:
        logits: Shape ``(n, C)``.
        targets: Class numbers of shape ``(n,)``.

    Returns:
        Shape ``(n,)``, bool.

    Raises:
        ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
    """
    return _scores(logits, targets).correct


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Length of the error vector, ``|| p - onehot(y) ||_2``, not squared (Paul et al. 2021).

    Args:
        logits: Shape ``(n, C)``.
        targets: Class numbers of shape ``(n,)``.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 logits), 0 to sqrt(2); higher is harder.

    Raises:
        ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
    """
    return _scores(logits, targets).el2n


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit; its mean is AUM (Pleiss et al. 2020).

    Args:
        logits: Shape ``(n, C)``.
        targets: Class numbers of shape ``(n,)``.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 logits); lower is harder.

    Raises:
        ValueError: If shapes do not fit, targets are out of range, or logits are not finite.
    """
    return _scores(logits, targets).margin


def forgetting_events(correct: Tensor) -> Tensor:
    """How often each example went from right to wrong (Toneva et al. 2019).

    An example that was never right counts T events, as in the authors' code, so that the hardest
    examples rank hardest.

    Args:
        correct: History of shape ``(n, T)`` of zeros and ones; NaN marks a presentation that did
            not take place, and is left out.

    Returns:
        Shape ``(n,)``, float32; NaN for an example without a presentation; higher is harder.

    Raises:
        ValueError: If the history is of another shape or has other values.
    """
    correct = _compact(correct)
    happened = ~correct.isnan()
    right = correct == 1
    events = (right[:, :-1] & ~right[:, 1:] & happened[:, 1:]).sum(1)
    events = torch.where(right.any(1), events, correct.shape[1]).float()
    return torch.where(happened.any(1), events, torch.nan)


def learning_time(correct: Tensor) -> Tensor:
    """Number of the presentation, counted from 1, from which on each example stays right.

    Args:
        correct: History of shape ``(n, T)`` of zeros and ones; NaN marks a presentation that did
            not take place, and is left out.

    Returns:
        Shape ``(n,)``, float32; infinite for an example that is wrong at the last presentation,
        NaN for one without a presentation; higher is harder.

    Raises:
        ValueError: If the history is of another shape or has other values.
    """
    correct = _compact(correct)
    happened = ~correct.isnan()
    presentations = happened.sum(1)
    wrong = happened & (correct == 0)
    numbers = torch.arange(1, correct.shape[1] + 1, device=correct.device)
    last_wrong = (wrong * numbers).amax(1) if correct.shape[1] else presentations
    times = torch.where(last_wrong == presentations, torch.inf, last_wrong + 1.0)
    return torch.where(presentations > 0, times, torch.nan)


def _scores(logits: Tensor, targets: Tensor) -> LogitScores:
    check_logits(logits)
    check_targets(targets, logits.shape[1])
    if len(targets) != len(logits):
        raise ValueError(
            f"targets must have one entry for each of the {len(logits)} rows of logits, "
            f"got shape {tuple(targets.shape)}; slice both alike"
        )
    return logit_scores(logits.detach(), targets.long())


def _compact(correct: Tensor) -> Tensor:
    """The history of every example with its gaps moved to the end."""
    if correct.ndim != 2:
        raise ValueError(
            f"correct must have shape (n, T), got {tuple(correct.shape)}; "
            "a single example is correct[None]"
        )
    missing = correct.isnan()
    if not bool(((correct == 0) | (correct == 1) | missing).all()):
        raise ValueError(
            "correct must hold 0, 1 or NaN, got other values; compare predictions with targets"
        )
    return correct.gather(1, missing.to(torch.uint8).argsort(dim=1, stable=True))
