"""Metrics over the mean of a value of every example, however often each was seen."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtools.inequality import gini
from memtools.metrics.arguments import checked_count, checked_indices, checked_values
from memtools.metrics.base import SettledMetric

__all__ = ["ExampleGini", "ExampleMetric"]


class ExampleMetric(SettledMetric):
    """Keeps a sum and a count for each example: 16 bytes an example, however many batches.

    Args:
        num_examples: Number of examples in the data set; ``None`` keeps one sum for all.
        settings: Whatever else changes the result.
        **kwargs: Settings of :class:`torchmetrics.Metric`.
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self, num_examples: int | None, settings: Mapping[str, Any], **kwargs: Any
    ) -> None:
        size = None if num_examples is None else checked_count("num_examples", num_examples)
        super().__init__({**settings, "num_examples": size}, **kwargs)
        self.num_examples = size
        self.add_state("sums", torch.zeros(size or 1, dtype=torch.float64), "sum")
        self.add_state("counts", torch.zeros(size or 1, dtype=torch.int64), "sum")

    def means(self) -> Tensor:
        """Mean value of every example, over what this process has seen of it.

        Returns:
            Shape ``(num_examples,)``, float64; NaN for an example that was not seen.
        """
        return torch.where(self.counts > 0, self.sums / self.counts, torch.nan)

    def _places(self, n: int, indices: Any) -> Tensor:
        """Where the values of a batch of n examples belong."""
        if self.num_examples is None:
            return torch.zeros(n, dtype=torch.int64, device=self.sums.device)
        if indices is None:
            raise ValueError(
                f"indices must be given with num_examples={self.num_examples}, got None; pass the "
                "number of each example in the data set, or build the metric without num_examples"
            )
        return checked_indices(indices, n, self.num_examples).to(self.sums.device)

    def _add(self, name: str, values: Tensor, places: Tensor) -> None:
        values = checked_values(name, values).to(self.sums)
        # Not in place: a state that was made in inference mode must not be written to outside.
        sums = self.sums.index_add(0, places, values)
        counts = self.counts.index_add(0, places, torch.ones_like(places))
        self.sums, self.counts = sums, counts

    def _seen(self) -> Tensor:
        """Means of those examples that were seen."""
        return self.means()[self.counts > 0]


class ExampleGini(ExampleMetric):
    """Gini coefficient over the mean values of the examples seen."""

    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    def compute(self) -> Tensor:
        """Gini coefficient, scalar float64; NaN before any example was seen."""
        seen = self._seen()
        return gini(seen) if len(seen) else self.sums.new_tensor(torch.nan)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value, or several in their order; needs matplotlib.

        Args:
            val: A result of ``compute`` or ``forward``, or a list of them; ``None`` computes.
            ax: Axes to draw in.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)
