"""What PyTorch's operators do to ranges of numbers, with their rounding: one rule for each.

A rule takes the bounds of what goes into an operator and gives bounds of all that can come out of
it: for every number in between, and for every way in which the model, in its own dtype, may round
and order its sums. The bounds are computed in float64, and their own rounding is counted as well.
What is assumed of the operators stands in ``memtools/critical/roundoff.py``.
"""

from memtools.critical.rules import (  # noqa: F401  they fill the table
    arithmetic,
    averages,
    curves,
    moves,
    products,
    rows,
)
from memtools.critical.rules.table import RULES

__all__ = ["RULES"]
