"""The critical sample ratio over the batches of a data set."""

from typing import Any

import torch
from torch import Tensor, nn

from memtools.batch import check_batch
from memtools.critical.box import Bounds
from memtools.critical.search import find_critical
from memtools.metrics.examples import ExampleMetric

__all__ = ["CriticalSampleRatio"]


class CriticalSampleRatio(ExampleMetric):
    r"""Share of the examples near which a search finds a point of another predicted class.

    .. math:: \mathrm{CSR} = \frac{1}{n} \sum_{i=1}^n \bigl[\exists\, x':\;
              \lVert x' - x_i \rVert_\infty \le r, \; \arg\max f(x') \ne \arg\max f(x_i)\bigr]

    the CSR of Arpit et al. (2017), section 4.1, as a lower bound; see
    :func:`memtools.find_critical`.

    With ``num_examples``, an example that is seen twice counts once, with its mean, so that the
    ratio is exact under a padding sampler. Without, two numbers are kept, and it counts twice.

    Args:
        radius: Half-width of the box **in the units of the inputs**, as for
            :func:`memtools.find_critical`, like all that follow but ``num_examples``.
        num_examples: Number of examples in the data set; ``update`` then needs ``indices``.
        method: ``"lass"`` or ``"auto"``.
        step_size: Step of LASS.
        noise: Noise of LASS.
        max_steps: Points that are tried for an example at most.
        bounds: Smallest and largest allowed input.
        gradient_at: ``"moving"`` or ``"start"``. LASS only.
        effort: How many passes an example may take. ``"auto"`` only.
        embedding: Name of the module whose output is searched in place of the inputs.
        batch_size: Examples a pass; ``None`` chooses.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``num_examples`` is no integer.
        ValueError: If ``num_examples`` is below 1.

    Example:
        >>> import torch
        >>> from memtools.metrics import CriticalSampleRatio
        >>> model, metric = torch.nn.Linear(1, 2), CriticalSampleRatio(radius=0.1)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), model.bias.data.zero_()
        >>> metric.update(model, torch.tensor([[0.05], [5.0]]))
        >>> metric.update(model, torch.tensor([[-3.0], [4.0]]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def __init__(
        self,
        radius: float | Tensor,
        *,
        num_examples: int | None = None,
        method: str = "lass",
        step_size: float | Tensor | None = None,
        noise: float | Tensor | None = None,
        max_steps: int | None = None,
        bounds: Bounds | None = None,
        gradient_at: str | None = None,
        effort: float | None = None,
        embedding: str | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "radius": radius,
            "method": method,
            "step_size": step_size,
            "noise": noise,
            "max_steps": max_steps,
            "bounds": bounds,
            "gradient_at": gradient_at,
            "effort": effort,
            "embedding": embedding,
        }
        super().__init__(num_examples, settings, **kwargs)
        self._options = {**settings, "batch_size": batch_size}

    def update(self, model: nn.Module, inputs: Tensor, indices: Any = None) -> None:
        """Search the examples of a batch with the model as it is.

        Args:
            model: Maps inputs to logits; it is in eval mode for the search, left as it was, and
                not kept.
            inputs: Batch of shape ``(n, ...)``.
            indices: Which examples these are, integers of shape ``(n,)``; not looked at without
                ``num_examples``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If ``indices`` do not fit, or as :func:`memtools.find_critical`. The metric
                is unchanged then.
        """
        check_batch(inputs, tokens=True)
        places = self._places(len(inputs), indices)
        search = find_critical(model, inputs, **self._options)
        self._add("is_critical", search.is_critical, places)

    def compute(self) -> Tensor:
        """The ratio, scalar float64; NaN before any example was seen."""
        seen = self._seen()
        return seen.mean() if len(seen) else self.sums.new_tensor(torch.nan)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, or several in their order; needs matplotlib.

        Args:
            val: A result of ``compute`` or ``forward``, or a list of them; ``None`` computes.
            ax: Axes to draw in.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)
