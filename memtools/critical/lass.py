"""LASS, the search of the paper: the sign of the gradient, and noise."""

import torch
from torch import Tensor

from memtools.critical.ascent import Ascent, ascend
from memtools.critical.session import Session

__all__ = ["lass"]


def lass(session: Session, *, step_size: Tensor, noise: Tensor, gradient_at_start: bool) -> None:
    """Search the boxes of all examples, see :func:`memtools.find_critical`."""
    how = Ascent(
        weights=weights_of_cross_entropy,
        unit=step_size,
        sizes=[1.0] * session.findings.most_tried,
        noise=noise if bool(noise.any()) else None,
        keeps_slope=gradient_at_start,
        is_last=True,
    )
    ascend(session, session.everyone, how)


def weights_of_cross_entropy(logits: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    """Direction of the gradient of the cross-entropy against the predicted class k, by logits.

    Of ``p - onehot(k)``, divided by ``1 - p_k``, which is rounded to nothing where a model is sure.
    """
    weights = logits.scatter(1, predicted[:, None], -torch.inf).softmax(1)
    return weights.scatter_(1, predicted[:, None], -1.0)
