"""The scores that are compared, and how well one tells wrong labels from right ones."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require

__all__ = ["EACH_EPOCH", "METHODS", "NORM", "Method", "auroc", "precision"]

NORM = "input_gradient_norm"


class Method(NamedTuple):
    """A way to rank examples."""

    title: str
    column: str
    sign: int
    """1 where high values are suspect, -1 where low ones are."""


METHODS = {
    "csl": Method("sum of the losses (CSL)", "csl", 1),
    "aum": Method("mean margin (AUM)", "aum", -1),
    "el2n": Method("mean EL2N", "el2n", 1),
    "confidence": Method("mean probability of the label", "confidence", -1),
    "correctness": Method("share of epochs right", "correctness", -1),
    "learning_time": Method("learning time", "learning_time", 1),
    "forgetting_events": Method("forgetting events", "forgetting_events", 1),
    "input_gradient": Method("mean input gradient (L1)", NORM, 1),
    "last_loss": Method("loss after the last epoch", "last_loss", 1),
    "held_out": Method("held-out probability of the label", "held_out_confidence", -1),
    "confident_learning": Method("confident learning (cleanlab)", "label_quality", -1),
}

EACH_EPOCH = ("csl", "aum", "el2n", "input_gradient", "last_loss")
"""Those of which the course over the training is kept."""


def auroc(table: Mapping[str, Any], method: str, is_wrong: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a wrong label ranks above a right one, ties half."""
    values = _suspicion(table, method)
    return float(require("sklearn.metrics").roc_auc_score(is_wrong, values))


def precision(table: Mapping[str, Any], method: str, is_wrong: NDArray[np.bool_]) -> float:
    """Share of wrong labels among as many of the most suspect examples as there are wrong ones."""
    worst = np.argsort(-_suspicion(table, method), kind="stable")[: int(is_wrong.sum())]
    return float(is_wrong[worst].mean())


def _suspicion(table: Mapping[str, Any], method: str) -> NDArray[np.float64]:
    values = METHODS[method].sign * np.asarray(table[METHODS[method].column], np.float64)
    # Only the order counts; a learning time may be infinite.
    return np.unique(values, return_inverse=True)[1].astype(np.float64)
