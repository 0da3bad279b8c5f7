"""Memorization of single examples, from many trainings on random subsets."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Memorization", "memorization"]


class Memorization(NamedTuple):
    """What :func:`memorization` estimates."""

    estimate: Tensor
    standard_error: Tensor


def memorization(correct: Tensor, included: Tensor) -> Memorization:
    r"""How much more often an example is right when it was trained on (Feldman and Zhang 2020).

    .. math:: mem_i = P(\text{correct}_i \mid i \in S) - P(\text{correct}_i \mid i \notin S)

    estimated by the shares p and q of R runs with and without the example; the standard error is
    :math:`\sqrt{p(1-p)/R_i + q(1-q)/(R - R_i)}`, which is 0 where all runs agree.

    Args:
        correct: Whether each run classifies each example as it is labelled, ``(R, n)``, zeros and
            ones or bool.
        included: Whether the example was in the run's training set, ``(R, n)``, likewise.

    Returns:
        Two tensors of shape ``(n,)``, float64: the estimate, -1 to 1, higher is more memorised, and
        its standard error. NaN for an example that was in all runs or in none.

    Raises:
        ValueError: If the shapes differ or are not ``(R, n)``, or other values occur.

    Example:
        >>> correct = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 1]])
        >>> included = torch.tensor([[1, 1], [1, 1], [0, 0], [0, 0]])
        >>> memorization(correct, included).estimate
        tensor([ 1.0000, -0.5000], dtype=torch.float64)
    """
    if correct.ndim != 2 or correct.shape != included.shape:
        raise ValueError(
            "correct and included must be of one shape (R, n), got "
            f"{tuple(correct.shape)} and {tuple(included.shape)}"
        )
    for name, x in (("correct", correct), ("included", included)):
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"{name} must hold zeros and ones, got other values")
    right, inside = correct.double(), included.double()
    variances, shares = [], []
    for weights in (inside, 1 - inside):
        runs = weights.sum(0)
        share = (weights * right).sum(0) / runs  # 0 / 0 is NaN
        shares.append(share)
        variances.append(share * (1 - share) / runs)
    return Memorization(shares[0] - shares[1], torch.sqrt(variances[0] + variances[1]))
