"""The scores that are compared, and what they say of the order of the examples."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memtools import seeds

__all__ = ["GRAND", "INPUT", "METHODS", "SENSITIVITY", "Method", "hardness_ranks"]

SENSITIVITY = "loss_sensitivity"
INPUT = "input_gradient_norm"
GRAND = "grand"


class Method(NamedTuple):
    """A way to rank examples."""

    title: str
    column: str
    sign: int
    """1 where high values are hard, -1 where low ones are."""


METHODS = {
    "sensitivity": Method("loss sensitivity", SENSITIVITY, 1),
    "input_gradient": Method("input gradient", INPUT, 1),
    "el2n": Method("EL2N", "el2n", 1),
    "grand": Method("GraNd", GRAND, 1),
    "forgetting": Method("forgetting events", "forgetting_events", 1),
    "aum": Method("AUM", "aum", -1),
    "csl": Method("CSL", "csl", 1),
}
"""By the names they have in the lines; the first is what the study is about."""


def hardness_ranks(table: Mapping[str, Any], method: str, seed: int) -> Tensor:
    """Place of each example from the easiest, 0, to the hardest, shape ``(n,)``.

    Equal scores are put in an order that is drawn at random: that of the indices would drop the
    same examples for all seeds, and forgetting events are few.

    Args:
        table: Scores of a training by column.
        method: One of :data:`METHODS`.
        seed: Fixes the order of equal scores.

    Returns:
        The ranks, no two alike.
    """
    _, column, sign = METHODS[method]
    values = sign * torch.as_tensor(table[column]).double()
    drawn = torch.randperm(len(values), generator=seeds.generator(seed, "ties", method))
    order = drawn[values[drawn].argsort(stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks
