"""Scores of single examples: from their logits, their history, snapshots of a model, many runs."""

from memtools.scores.histories import forgetting_events, forgetting_time, learning_time
from memtools.scores.logits import confidence, correctness, el2n, loss, margin
from memtools.scores.runs import Memorization, memorization
from memtools.scores.snapshots import curvature, variance_of_gradients

__all__ = [
    "Memorization",
    "confidence",
    "correctness",
    "curvature",
    "el2n",
    "forgetting_events",
    "forgetting_time",
    "learning_time",
    "loss",
    "margin",
    "memorization",
    "variance_of_gradients",
]
