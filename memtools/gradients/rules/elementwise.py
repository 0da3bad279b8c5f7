"""Weights that are added to activations or multiply them, and weights repeated for each example."""

from collections.abc import Callable

import torch
from torch import Tensor

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Dense
from memtools.gradients.rules.sums import free_dims, reduce_to
from memtools.gradients.rules.table import Operation, Part, rule

__all__ = ["REPEATING"]

Factor = Callable[[Tensor], Tensor | float]


def _broadcast(x: Tensor, weight: Tensor, factor: Factor) -> Operation | None:
    """A weight that is broadcast to activations."""
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or weight.ndim > x.ndim:
        return None
    aligned = (1,) * (x.ndim - weight.ndim) + tuple(weight.shape)

    def build(x: Tensor, gradient: Tensor, layout: Layout) -> Dense:
        return Dense(reduce_to(layout.arrange_shape(aligned), gradient, x, factor))

    return Operation(x, [Part(weight, "dense", build)], free_dims(aligned))


def _either(a: Tensor, b: Tensor, by_a: Factor, by_b: Factor) -> Operation | None:
    """Both arguments may be the weight: it is the one that is broadcast."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and _is_smaller(a, b):
        return _broadcast(b, a, by_a)
    return _broadcast(a, b, by_b)


def _is_smaller(a: Tensor, b: Tensor) -> bool:
    return (a.ndim, a.numel()) < (b.ndim, b.numel())


def _one(_: Tensor) -> float:
    return 1.0


def _minus(_: Tensor) -> float:
    return -1.0


def _itself(x: Tensor) -> Tensor:
    return x


@rule([torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__])
def _add(input: Tensor, other: Tensor) -> Operation | None:
    return _either(input, other, _one, _one)


@rule([torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_, Tensor.__isub__])
def _sub(input: Tensor, other: Tensor) -> Operation | None:
    return _either(input, other, _one, _minus)


@rule([torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__])
def _mul(input: Tensor, other: Tensor) -> Operation | None:
    return _either(input, other, _itself, _itself)


@rule([torch.prelu])
def _prelu(input: Tensor, weight: Tensor) -> Operation | None:
    channels = weight.reshape(-1, *[1] * (input.ndim - 2)) if input.ndim > 2 else weight
    operation = _broadcast(input, channels, lambda x: x.clamp(max=0))
    if operation is None:
        return None
    (part,) = operation.parts
    return Operation(input, [Part(weight, "dense", part.build)], operation.batch_dims)


REPEATING = frozenset({Tensor.expand, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to})
"""What these return is the weight itself, seen more than once."""


@rule(REPEATING)
def _expand(input: Tensor, *sizes: int | Tensor, size: tuple[int, ...] = ()) -> Operation | None:
    shape = sizes[0] if sizes and not isinstance(sizes[0], int) else sizes or size
    shape = tuple(shape.shape if isinstance(shape, Tensor) else shape)
    aligned = (1,) * (len(shape) - input.ndim) + tuple(input.shape)

    def build(_: Tensor, gradient: Tensor, layout: Layout) -> Dense:
        return Dense(reduce_to(layout.arrange_shape(aligned), gradient, gradient, _one))

    return Operation(None, [Part(input, "dense", build)], free_dims(aligned))
