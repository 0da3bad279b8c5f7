"""Scores of single examples from their history over a training."""

import torch
from torch import Tensor

from memtools.batch import check_tensor

__all__ = ["forgetting_events", "forgetting_time", "learning_time"]


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


def forgetting_time(correct: Tensor) -> Tensor:
    """Number of the presentation, counted from 1, from which on each example stays wrong.

    On the first half of the data while a network that has learnt it goes on with the second half,
    this is second-split forgetting (Maini et al. 2022): mislabelled examples are forgotten early.

    Args:
        correct: History of shape ``(n, T)`` of zeros and ones; NaN marks a presentation that did
            not take place, and is left out.

    Returns:
        Shape ``(n,)``, float32; infinite for an example that is right at the last presentation,
        NaN for one without a presentation; lower is harder.

    Raises:
        ValueError: If the history is of another shape or has other values.
    """
    _check(correct)  # before 1 - correct is rounded
    return learning_time(1 - correct.float())


def _compact(correct: Tensor) -> Tensor:
    """The history of every example with its gaps moved to the end."""
    _check(correct)
    return correct.gather(1, correct.isnan().to(torch.uint8).argsort(dim=1, stable=True))


def _check(correct: Tensor) -> None:
    check_tensor("correct", correct)
    if correct.ndim != 2:
        raise ValueError(
            f"correct must have shape (n, T), got {tuple(correct.shape)}; "
            "a single example is correct[None]"
        )
    if not bool(((correct == 0) | (correct == 1) | correct.isnan()).all()):
        raise ValueError(
            "correct must hold 0, 1 or NaN, got other values; compare predictions with targets"
        )
