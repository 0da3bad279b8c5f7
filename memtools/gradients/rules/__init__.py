"""Closed forms of the gradients of single examples: one rule for each operator with weights."""

from memtools.gradients.rules import (  # noqa: F401  they fill the table
    convolution,
    elementwise,
    embedding,
    linear,
    normalization,
)
from memtools.gradients.rules.elementwise import REPEATING
from memtools.gradients.rules.embedding import Rows, rows_of
from memtools.gradients.rules.table import RULES, Operation, Part

__all__ = ["REPEATING", "RULES", "Operation", "Part", "Rows", "rows_of"]
