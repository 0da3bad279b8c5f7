"""The kinds of data that the memorization study compares."""

from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL, Condition

__all__ = ["CONDITIONS"]

CONDITIONS = (
    REAL,
    Condition("random-labels-20", "20% random labels", labels=0.2),
    Condition("random-labels-40", "40% random labels", labels=0.4),
    RANDOM_LABELS,
    RANDOM_INPUTS,
)
