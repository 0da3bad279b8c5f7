"""How a rule says what an operator does with its weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Piece

__all__ = ["RULES", "Operation", "Part", "Rule", "rule"]


@dataclass(frozen=True)
class Part:
    """One weight of an operation.

    Attributes:
        weight: The tensor that the operator was called with.
        form: Gradients of the same form can be added.
        build: From the operand and the gradient of the output, both with the examples first, to
            the gradients of the examples with respect to ``weight``.
    """

    weight: Tensor
    form: str
    build: Callable[[Tensor, Tensor, Layout], Piece]


@dataclass(frozen=True)
class Operation:
    """A call of an operator, seen as a function of its weights.

    Attributes:
        operand: The activations; the output holds the examples in the same dimension. ``None`` if
            there are none: the output then shows where the examples are.
        parts: What there is for each of the weights.
        batch_dims: Dimensions of the operand in which the examples may be.
    """

    operand: Tensor | None
    parts: list[Part]
    batch_dims: Sequence[int]


Rule = Callable[..., Operation | None]
"""From the arguments of a call to what it does; ``None`` if there is no closed form for it."""

RULES: dict[Callable[..., Any], Rule] = {}


def rule(functions: Iterable[Callable[..., Any]]) -> Callable[[Rule], Rule]:
    """Make the decorated function the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, function))
        return function

    return register
