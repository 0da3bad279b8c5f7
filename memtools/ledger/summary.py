"""Histories of presentations brought down to one number for each example."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtools import scores
from memtools.ledger.ranges import Range

__all__ = ["RESERVED", "ranked", "summarised"]

SUMMARIES = {
    "loss": "csl",
    "confidence": "confidence",
    "el2n": "el2n",
    "margin": "aum",
    "correct": "correctness",
}
"""What the mean over presentations is called, by column; ``csl`` is the sum."""

RESERVED = {"index", "presentations", "variability", "forgetting_events", "learning_time"} | {
    summary for column, summary in SUMMARIES.items() if summary not in SUMMARIES
}
"""Columns of the table of scores that are no score of their own."""

LOW_IS_HARD = {"aum", "confidence", "correctness"}


def summarised(part: Range, columns: Iterable[str], longest: int) -> dict[str, NDArray[Any]]:
    """The scores of a range of examples by name, each of shape ``(stop - start,)``.

    Args:
        part: The examples.
        columns: Names of the scores that have a history.
        longest: Largest number of presentations of any example, in whichever range: what was never
            learned counts as so many forgetting events.
    """
    table: dict[str, NDArray[Any]] = {
        "index": np.arange(part.start, part.stop),
        "presentations": part.counts,
    }
    for column in columns:
        history = torch.from_numpy(part.history(column, longest)).double()
        mean = history.nanmean(1)
        if column == "loss":
            total = torch.where(mean.isnan(), torch.nan, history.nansum(1))
            table["csl"] = _float32(total)
        else:
            table[SUMMARIES.get(column, column)] = _float32(mean)
        if column == "confidence":
            deviation = history.sub_(mean[:, None]).square_().nanmean(1).sqrt()
            table["variability"] = _float32(deviation)
        if column == "correct":
            table["forgetting_events"] = _float32(scores.forgetting_events(history))
            table["learning_time"] = _float32(scores.learning_time(history))
    return table


def ranked(table: Mapping[str, NDArray[Any]], by: str) -> NDArray[np.int64]:
    """Indices of all examples in a table of scores, the hardest first; those without one last."""
    if by not in table:
        raise KeyError(f"no column {by!r}; there are: {', '.join(table)}")
    values = np.asarray(table[by], np.float64)
    return np.argsort(values if by in LOW_IS_HARD else -values, kind="stable")


def _float32(values: Tensor) -> NDArray[np.float32]:
    return values.float().numpy()
