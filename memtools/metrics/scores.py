"""How unequally any score is spread over the examples."""

from typing import Any

from memtools.metrics.arguments import checked_values
from memtools.metrics.examples import ExampleGini

__all__ = ["ScoreGini"]


class ScoreGini(ExampleGini):
    r"""Gini coefficient of any nonnegative score of the examples.

    .. math:: G\bigl(\bar v_1, \dots, \bar v_n\bigr), \qquad
              \bar v_i = \frac{1}{T_i} \sum_{t=1}^{T_i} v_{i,t}

    over the :math:`T_i` times that example i was seen since the last ``reset``; see
    :func:`memtools.gini`. For losses, scores of :mod:`memtools.scores`, or what
    :func:`memtools.watch` reads from a training step at no extra pass (Arpit et al. 2017, section
    3.2, take it of the loss sensitivity).

    Args:
        num_examples: Number of examples in the data set.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``num_examples`` is no integer.
        ValueError: If ``num_examples`` is below 1.

    Example:
        >>> from memtools.metrics import ScoreGini
        >>> metric = ScoreGini(num_examples=4)
        >>> metric.update([0.0, 0.0], indices=[0, 1])
        >>> metric.update([0.0, 1.0, 1.0], indices=[2, 3, 3])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, num_examples: int, **kwargs: Any) -> None:
        super().__init__(num_examples, {}, **kwargs)

    def update(self, values: Any, indices: Any) -> None:
        """Add the scores of a batch.

        Args:
            values: Finite nonnegative scores, shape ``(n,)``.
            indices: Which examples these are, integers of shape ``(n,)``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is negative, NaN or infinite, or ``indices`` do not fit. The
                metric is unchanged then.
        """
        values = checked_values("values", values)
        self._add("values", values, self._places(len(values), indices))
