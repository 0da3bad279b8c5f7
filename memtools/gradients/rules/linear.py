"""Linear layers, and products with a matrix of weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Dense, Outer
from memtools.gradients.rules.table import Operation, Part, rule

__all__: list[str] = []


def _positions(tensor: Tensor) -> Tensor:
    """``(n, ..., d)`` as ``(n, T, d)``."""
    if tensor.ndim == 2:
        return tensor[:, None]
    return tensor if tensor.ndim == 3 else tensor.flatten(1, -2)


def _weight(operand: Tensor, gradient: Tensor, _: Layout) -> Outer:
    return Outer(_positions(gradient), _positions(operand))


def _transposed_weight(operand: Tensor, gradient: Tensor, _: Layout) -> Outer:
    return Outer(_positions(operand), _positions(gradient))


def _bias(_: Tensor, gradient: Tensor, __: Layout) -> Dense:
    return Dense(gradient if gradient.ndim == 2 else _positions(gradient).sum(1))


@rule([F.linear])
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation | None:
    if weight.ndim != 2 or input.ndim < 2 or not (bias is None or len(bias) == len(weight)):
        return None
    parts = [Part(weight, "outer", _weight)]
    if bias is not None:
        parts.append(Part(bias, "dense", _bias))
    return Operation(input, parts, range(input.ndim - 1))


@rule([torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__])
def _matmul(input: Tensor, other: Tensor) -> Operation | None:
    if other.ndim != 2 or input.ndim < 2:
        return None
    return Operation(input, [Part(other, "outer", _transposed_weight)], range(input.ndim - 1))


@rule([torch.addmm, Tensor.addmm])
def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **factors: float) -> Operation | None:
    if factors or input.shape != mat2.shape[1:]:
        return None
    parts = [Part(mat2, "outer", _transposed_weight), Part(input, "dense", _bias)]
    return Operation(mat1, parts, range(1))
