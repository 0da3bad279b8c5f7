"""Scores of single examples from their logits."""

from memtools_kernels import LogitScores, logit_scores
from torch import Tensor

from memtools.batch import check_logits, check_targets

__all__ = ["confidence", "correctness", "el2n", "loss", "margin"]


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


def _scores(logits: Tensor, targets: Tensor) -> LogitScores:
    check_logits(logits)
    check_targets(targets, logits.shape[1])
    if len(targets) != len(logits):
        raise ValueError(
            f"targets must have one entry for each of the {len(logits)} rows of logits, "
            f"got shape {tuple(targets.shape)}; slice both alike"
        )
    return logit_scores(logits.detach(), targets.long())
