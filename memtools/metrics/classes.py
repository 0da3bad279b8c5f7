"""The sensitivity of the loss term of each class to the inputs of each class, over batches."""

from typing import Any

import torch
from torch import Tensor, nn

from memtools.extras import require
from memtools.gradients.classes import class_sensitivity
from memtools.metrics.arguments import checked_count
from memtools.metrics.base import SettledMetric

__all__ = ["ClassSensitivity"]


class ClassSensitivity(SettledMetric):
    r"""Mean input gradient of each class's loss term over the examples of each class.

    .. math:: S_{ij} = \operatorname{mean}_{x : y(x) = j}
              \lVert \partial\, (-\log p_i(x)) / \partial x \rVert_1

    as :func:`memtools.class_sensitivity` over all examples at once: the companion, at the weights
    of the moment, of the per-class loss sensitivity of Arpit et al. (2017), section 3.2. Row i is
    the loss term of class i, column j the examples of class j.

    Keeps C x C sums and C counts, and no examples: one that is seen twice counts twice.

    Args:
        num_classes: Number of logits C.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``num_classes`` is no integer.
        ValueError: If ``num_classes`` is below 2.

    Example:
        >>> import torch
        >>> from memtools.metrics import ClassSensitivity
        >>> model, metric = torch.nn.Linear(3, 2), ClassSensitivity(num_classes=2)
        >>> metric.update(model, torch.randn(3, 3), torch.tensor([0, 1, 1]))
        >>> metric.update(model, torch.randn(2, 3), torch.tensor([0, 0]))
        >>> metric.compute().shape
        torch.Size([2, 2])
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        classes = checked_count("num_classes", num_classes)
        if classes < 2:
            raise ValueError(
                f"num_classes must be at least 2, got {classes}; a model with one logit needs a "
                "second one, for instance zero"
            )
        super().__init__({"num_classes": classes}, **kwargs)
        self.num_classes = classes
        self.add_state("sums", torch.zeros(classes, classes, dtype=torch.float64), "sum")
        self.add_state("counts", torch.zeros(classes, dtype=torch.int64), "sum")

    def update(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        """Add the gradients of a batch at the present weights.

        Args:
            model: Maps inputs to logits; it is left as it was, and not kept.
            inputs: Batch of shape ``(n, ...)``, floating point.
            targets: Class numbers of shape ``(n,)``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: As :func:`memtools.class_sensitivity`. The metric is unchanged then.
        """
        means = class_sensitivity(model, inputs, targets, num_classes=self.num_classes)
        # Counted by hand: bincount has no deterministic kernel on a GPU.
        classes = torch.arange(self.num_classes, device=targets.device)
        counts = (targets[:, None] == classes).sum(0).to(self.counts)
        means = means.to(self.sums)
        sums = torch.where(counts > 0, means * counts, 0.0)
        if not bool(torch.isfinite(sums).all()):
            raise ValueError(
                "gradient norms must be finite, got NaN or infinity; check the training for "
                "divergence"
            )
        self.sums, self.counts = self.sums + sums, self.counts + counts

    def compute(self) -> Tensor:
        """Matrix of shape ``(C, C)``, float64; the column of a class without examples is NaN."""
        return torch.where(self.counts > 0, self.sums / self.counts, torch.nan)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the matrix as a heat map on a logarithmic scale; needs matplotlib.

        Args:
            val: A result of ``compute`` or ``forward``; ``None`` computes.
            ax: Axes to draw in.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        matrix = (self.compute() if val is None else val).detach().cpu()
        ax = require("matplotlib.pyplot").subplots()[1] if ax is None else ax
        image = ax.imshow(matrix.where(matrix > 0, torch.nan).numpy(), norm="log")
        ax.set(xlabel="class of the example", ylabel="class of the loss term")
        ax.figure.colorbar(image, ax=ax)
        return ax.figure, ax
