"""The kinds of data that the study compares."""

from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL, Condition

__all__ = ["CONDITIONS", "LEVELS", "PARTLY_RANDOM_LABELS", "WHOLLY"]

SHARES = (20, 40, 60, 80)
"""Percent of the examples that are random, as in the paper."""

PARTLY_RANDOM_LABELS = tuple(
    Condition(f"random-labels-{share}", f"{share}% random labels", labels=share / 100)
    for share in SHARES
)

PARTLY_RANDOM_INPUTS = tuple(
    Condition(f"random-inputs-{share}", f"{share}% random inputs", inputs=share / 100)
    for share in SHARES
)

LEVELS = {
    "random labels": (REAL, *PARTLY_RANDOM_LABELS, RANDOM_LABELS),
    "random inputs": (REAL, *PARTLY_RANDOM_INPUTS, RANDOM_INPUTS),
}
"""From no noise to nothing else, for each kind of noise."""

WHOLLY = (REAL, RANDOM_LABELS, RANDOM_INPUTS)

CONDITIONS = (*LEVELS["random labels"], *LEVELS["random inputs"][1:])
