"""What is known of a model's numbers: two that they lie between, and which is the largest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memtools.critical.roundoff import Roundoff

__all__ = ["Range", "Scores"]


@dataclass(frozen=True)
class Range:
    """Numbers that are known to lie between two others; NaN where nothing is known.

    Attributes:
        lower: float64.
        upper: float64, of the same shape.
        scores: What is known besides about which entry of a row is the largest.
    """

    lower: Tensor
    upper: Tensor
    scores: "Scores | None" = None

    @classmethod
    def of(cls, value: "Range | Tensor | float") -> "Range":
        """Bounds as they are; a constant as an interval of no width."""
        if isinstance(value, Range):
            return value
        value = torch.as_tensor(value, dtype=torch.float64)
        return cls(value, value)

    @property
    def centre(self) -> Tensor:
        """Halfway between the two, but for rounding, which the radius makes up for."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Largest distance from the centre."""
        return torch.maximum(self.upper - self.centre, self.centre - self.lower)

    @property
    def size(self) -> Tensor:
        """Largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    def widened(self, error: Tensor | float) -> "Range":
        """Bounds of numbers that are off by ``error``."""
        return Range(self.lower - error, self.upper + error)


@dataclass(frozen=True)
class Scores:
    r"""A row of numbers as a linear map of an interval, to tell which of them is the largest.

    Two logits move together with what they are computed from, so that

    .. math:: f_c - f_k = (w_c - w_k) \cdot h + b_c - b_k

    has tighter bounds than the difference of the bounds of :math:`f_c` and of :math:`f_k`.

    Attributes:
        inputs: h, ``(n, K)``.
        weight: Rows w, ``(C, K)``.
        bias: b, ``(C,)``.
        rounding: Of the dtype in which the model computes the numbers.
        tolerance: By how much the largest must be ahead to be the largest still after what was
            done to the numbers since, ``(n, 1)``; ``None`` where nothing was.
    """

    inputs: Range
    weight: Tensor
    bias: Tensor
    rounding: Roundoff
    tolerance: Tensor | None = None

    @classmethod
    def of(cls, bounds: Range, rounding: Roundoff) -> "Scores":
        """Of numbers of which nothing is known but their bounds: the identity map."""
        classes = bounds.lower.shape[1]
        weight = torch.eye(classes, dtype=torch.float64, device=bounds.lower.device)
        return cls(bounds, weight, weight.new_zeros(classes), rounding)

    def is_largest(self, classes: Tensor) -> Tensor:
        """Whether entry ``classes[i]`` of row i is the largest wherever in the interval h is.

        Args:
            classes: ``(n,)`` int64.

        Returns:
            ``(n,)`` bool; never true where a tie is possible.
        """
        floor, terms = self.rounding.floor, self.weight.shape[1] + 2
        sizes = (self.inputs.size + floor) @ (self.weight.abs() + floor).T + self.bias.abs()
        errors = self.rounding.of(terms) * sizes
        found = torch.zeros_like(classes, dtype=torch.bool)
        for label in classes.unique().tolist():
            rows = classes == label
            weight, bias = self.weight[label] - self.weight, self.bias[label] - self.bias
            ahead = self.inputs.centre[rows] @ weight.T + bias
            ahead -= self.inputs.radius[rows] @ weight.abs().T
            ahead -= errors[rows, label, None] + errors[rows]
            wins = ahead > (0 if self.tolerance is None else self.tolerance[rows])
            wins[:, label] = True
            found[rows] = wins.all(1)
        return found
