"""How unequally the gradients of the weights are spread over the examples."""

from typing import Any

from torch import Tensor, nn

from memtools.batch import LossFunction, check_batch
from memtools.gradients.parameters import parameter_gradient_norms
from memtools.metrics.examples import ExampleGini

__all__ = ["ParameterGradientGini"]


class ParameterGradientGini(ExampleGini):
    r"""Gini coefficient of the weight gradient norms of the examples.

    .. math:: G\bigl(\bar g_1, \dots, \bar g_n\bigr), \qquad
              \bar g_i = \frac{1}{T_i} \sum_{t=1}^{T_i}
              \lVert \nabla_\theta\, \ell(f_{\theta_t}(x_i), y_i) \rVert_2

    over the :math:`T_i` times that example i was seen since the last ``reset``: the inequality of
    Arpit et al. (2017), section 3.2, over the GraNd score of Paul et al. (2021). Seen in several
    epochs it is that of the mean over them. A second sight of an example in an epoch, by a padding
    sampler, does not count it twice. See :class:`InputGradientGini` for resets.

    Args:
        num_examples: Number of examples in the data set.
        loss_fn: As for :func:`memtools.parameter_gradient_norms`, like all that follow.
        chunk_size: Examples a pass; ``None`` takes all at once.
        check: Whether to compare the logits of every example with those in other company before.
        allow_random: Whether the model may draw random numbers.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``num_examples`` is no integer.
        ValueError: If ``num_examples`` is below 1.

    Example:
        >>> import torch
        >>> from memtools.metrics import ParameterGradientGini
        >>> model, metric = torch.nn.Linear(3, 2), ParameterGradientGini(num_examples=10)
        >>> inputs, targets = torch.randn(10, 3), torch.zeros(10).long()
        >>> for batch in torch.arange(10).split(4):
        ...     metric.update(model, inputs[batch], targets[batch], batch)
        >>> 0 <= metric.compute() < 1
        tensor(True)
    """

    def __init__(
        self,
        num_examples: int,
        *,
        loss_fn: LossFunction | None = None,
        chunk_size: int | None = None,
        check: bool = False,
        allow_random: bool = False,
        **kwargs: Any,
    ) -> None:
        settings: dict[str, Any] = {"loss_fn": loss_fn, "allow_random": allow_random}
        super().__init__(num_examples, settings, **kwargs)
        self._options = {**settings, "chunk_size": chunk_size, "check": check}

    def update(self, model: nn.Module, inputs: Tensor, targets: Tensor, indices: Any) -> None:
        """Add the gradients of a batch at the present weights.

        Args:
            model: Maps inputs to logits; it is left as it was, and not kept.
            inputs: Batch of shape ``(n, ...)``.
            targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
            indices: Which examples these are, integers of shape ``(n,)``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If ``indices`` do not fit, or as
                :func:`memtools.parameter_gradient_norms`. The metric is unchanged then.
        """
        check_batch(inputs, targets, tokens=True)
        places = self._places(len(inputs), indices)
        norms = parameter_gradient_norms(model, inputs, targets, **self._options)
        self._add("gradient norms", norms, places)
