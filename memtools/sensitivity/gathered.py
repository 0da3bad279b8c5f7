"""What the backward sweep adds up for each example, and what is made of it in the end."""

import math
from typing import ClassVar

import torch
from memtools_kernels import row_norms
from torch import Tensor

__all__ = ["ExampleWeights", "InputGradients", "InputNorms", "Sketch"]


class InputGradients:
    """The gradient with respect to each input. Base of the others.

    Args:
        shape: Of what is added up per example and adjoint.

    Attributes:
        of_losses: Whether it is about the weights of the examples in the losses of their batches,
            and not about their inputs.
    """

    of_losses: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)

    def add(self, gradient: Tensor) -> Tensor:
        """What a gradient ``(K, b, ...)`` adds, ``(K, b, *shape)``."""
        return gradient

    def result(self, total: Tensor) -> Tensor:
        """From sums ``(K, n, *shape)`` to results ``(K, n, ...)``."""
        return total


class ExampleWeights(InputGradients):
    """The derivative by the weight of each example in the losses of its batches."""

    of_losses = True


class InputNorms(InputGradients):
    """The p-norm of the gradient with respect to each input."""

    def __init__(self, shape: tuple[int, ...], p: float) -> None:
        super().__init__(shape)
        self._p = p

    def result(self, total: Tensor) -> Tensor:
        """The norms, ``(K, n)``."""
        k, n = total.shape[:2]
        return row_norms(total.reshape(k * n, -1), self._p).view(k, n)


class Sketch(InputGradients):
    """An estimate of the 1- or 2-norm of the gradient, from m projections on random vectors.

    Projections of x on Gaussian vectors are Gaussian with the 2-norm of x as standard deviation,
    those on Cauchy vectors are Cauchy with its 1-norm as median of their sizes.

    Args:
        like: An input, for its shape, dtype and device.
        p: 1 or 2.
        size: m.
    """

    def __init__(self, like: Tensor, p: float, size: int) -> None:
        super().__init__((size,))
        numbers = torch.randn(
            2, like.numel(), size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        # The quotient of two Gaussian numbers is a Cauchy number.
        self._vectors = (numbers[0] if p == 2 else numbers[0] / numbers[1]).to(like)
        self._p = p

    def add(self, gradient: Tensor) -> Tensor:
        """The projections, ``(K, b, m)``."""
        return gradient.flatten(2) @ self._vectors

    def result(self, total: Tensor) -> Tensor:
        """The estimates, ``(K, n)``."""
        if self._p == 2:
            return total.norm(dim=-1) / math.sqrt(self.shape[0])
        ordered = total.abs().sort(-1).values
        middle = (self.shape[0] - 1) // 2, self.shape[0] // 2
        return (ordered[..., middle[0]] + ordered[..., middle[1]]) / 2
