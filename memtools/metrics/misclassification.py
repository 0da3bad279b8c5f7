"""How often each example is misclassified over many trainings, and whether some are harder."""

from typing import Any

import torch
from torch import Tensor

from memtools.extras import require
from memtools.metrics.examples import ExampleMetric
from memtools.scores import correctness

__all__ = ["MisclassificationRate"]


class MisclassificationRate(ExampleMetric):
    r"""Share of runs that misclassify each example, and how far it is from equally hard ones.

    .. math:: q_i = \frac{\text{runs that misclassify } x_i}{R_i}, \qquad
              OD = \frac{\operatorname{Var}(q_i)}{\bar q\,(1 - \bar q)\,
              \operatorname{mean}(1 / R_i)}

    Arpit et al. (2017), section 3.1: many models are trained for an epoch, from different
    initialisations and orders; on real data some examples are always right and some always wrong,
    while on random inputs all are alike. The over-dispersion OD is this package's summary of it,
    and the same for rates of right answers: near 1 if all examples are equally hard, so that the
    :math:`R_i` runs are draws of a binomial, and far above it if some are easy and some hard. The
    variance is the unbiased one over the examples seen.

    Update with every run over the same examples, each once a run, and do not reset in between.
    An example that a padding sampler gives twice counts in :math:`R_i` twice.

    Args:
        num_examples: Number of examples in the data set.
        **kwargs: Settings of :class:`torchmetrics.Metric`.

    Raises:
        TypeError: If ``num_examples`` is no integer.
        ValueError: If ``num_examples`` is below 1.

    Example:
        >>> import torch
        >>> from memtools.metrics import MisclassificationRate
        >>> metric, indices = MisclassificationRate(num_examples=3), torch.arange(3)
        >>> for logits in (torch.eye(3), torch.eye(3)[[0, 2, 1]]):
        ...     metric.update(logits, indices, indices)
        >>> metric.compute()["rates"]
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, num_examples: int, **kwargs: Any) -> None:
        super().__init__(num_examples, {}, **kwargs)

    def update(self, logits: Tensor, targets: Tensor, indices: Any) -> None:
        """Add a batch that one of the trained models has classified.

        Args:
            logits: Shape ``(n, C)``.
            targets: Class numbers of shape ``(n,)``.
            indices: Which examples these are, integers of shape ``(n,)``.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If shapes do not fit, a number is out of range, or logits are not finite.
                The metric is unchanged then.
        """
        wrong = ~correctness(logits, targets)
        self._add("errors", wrong, self._places(len(wrong), indices))

    def compute(self) -> dict[str, Tensor]:
        """The rates and their over-dispersion.

        Returns:
            ``rates``, q of shape ``(num_examples,)``, NaN for an example not seen; ``mean``, their
            mean over runs and examples, scalar; ``overdispersion``, scalar, NaN if all answers are
            right or all wrong, or fewer than two examples were seen. All float64.
        """
        seen = self.counts > 0
        rates, runs = self.means(), self.counts[seen].to(self.sums)
        mean = self.sums.sum() / self.counts.sum()
        excess = rates[seen] - rates[seen].mean()
        variance = excess.square().sum() / (len(excess) - 1)
        expected = mean * (1 - mean) * runs.reciprocal().mean()
        return {"rates": rates, "mean": mean, "overdispersion": variance / expected}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the rates from the easiest to the hardest example, as the paper's figure 1.

        Args:
            val: A result of ``compute`` or ``forward``; ``None`` computes. Needs matplotlib.
            ax: Axes to draw in.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        rates = (self.compute() if val is None else val)["rates"].detach().cpu()
        ordered = rates[~rates.isnan()].sort().values
        ax = require("matplotlib.pyplot").subplots()[1] if ax is None else ax
        ax.plot(torch.linspace(0, 1, len(ordered)).numpy(), ordered.numpy())
        ax.set(xlabel="share of the examples", ylabel="misclassification rate", ylim=(0, 1))
        return ax.figure, ax
