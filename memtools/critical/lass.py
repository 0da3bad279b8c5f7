"""LASS, the search of the paper: the sign of the gradient, and noise."""

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
    )
    ascend(session, session.everyone, how)


def weights_of_cross_entropy(logits: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    """Gradient of the cross-entropy against the predicted class with respect to the logits."""
    weights = logits.softmax(1)
    # Not weights[k] - 1, which is rounded to nothing where the model is sure.
    own = weights.scatter(1, predicted[:, None], 0.0).sum(1, keepdim=True)
    return weights.scatter_(1, predicted[:, None], -own)
