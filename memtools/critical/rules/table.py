"""Which rule says what an operator does to ranges of numbers."""

from collections.abc import Callable
from typing import Any

__all__ = ["RULES", "Rule", "rule"]

Rule = Callable[..., Any]
"""``rule(operator, rounding, *args, **kwargs)``: from an operator's arguments, with bounds of what
depends on the input and constants in float64, to the bounds of its first result or of all."""

RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Make the decorated function the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register
