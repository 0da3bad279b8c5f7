"""Examples whose label is likely to be wrong, from how they fared in a training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["label_issues", "suspects"]

NEEDED = ("csl", "aum", "confidence", "correctness", "presentations")


def suspects(
    scores: Mapping[str, Any], *, share: float | None = None, labels: Any = None
) -> dict[str, NDArray[Any]]:
    """Examples that are likely to be mislabelled, the most suspect first, and why.

    Suspect is an example for which the network on average preferred another class: mean margin
    (AUM, Pleiss et al. 2020) below 0. They are ranked by the sum of their losses (CSL); how well
    that finds wrong labels, ``memtools study mislabels`` measures. A hard or ambiguous example may
    look the same: this is a list to look through, not to delete.

    Args:
        scores: ``ledger.scores()`` of a ledger that was given logits.
        share: Take the share of all examples with the largest sum of losses, whatever their margin;
            ``None`` takes those with a mean margin below 0.
        labels: The labels that were trained on, ``(n,)``; they become a column.

    Returns:
        ``index``, ``score`` (CSL, nats), ``reason``, and ``label`` if there are labels: arrays of
        one entry for each suspect.

    Raises:
        TypeError: If ``scores`` is no mapping.
        ValueError: If a score is missing or none of numbers ``(n,)``, ``share`` lies outside 0 to
            1, or the lengths differ.

    Example:
        >>> import torch, memtools
        >>> ledger = memtools.Ledger(2)
        >>> for _ in range(3):
        ...     ledger.update([0, 1], logits=torch.tensor([[2.0, 0.0], [2.0, 0.0]]),
        ...                   targets=torch.tensor([0, 1]))
        >>> found = suspects(ledger.scores())
        >>> found["index"], found["reason"][0]
        (array([1]), 'right at 0 of 3 presentations, mean probability of the label 0.12')
    """
    columns = _checked(scores)
    n = len(columns["csl"])
    order = np.argsort(-columns["csl"], kind="stable")
    if share is None:
        chosen = order[columns["aum"][order] < 0]
    elif 0 <= share <= 1:
        known = order[np.isfinite(columns["csl"][order])]
        chosen = known[: round(share * n)]
    else:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    reasons = [
        f"right at {round(correctness * presentations)} of {presentations} presentations, "
        f"mean probability of the label {confidence:.2f}"
        for correctness, presentations, confidence in zip(
            columns["correctness"][chosen],
            columns["presentations"][chosen].astype(int),
            columns["confidence"][chosen],
            strict=True,
        )
    ]
    found = {"index": chosen, "score": columns["csl"][chosen], "reason": np.array(reasons, object)}
    if labels is not None:
        found["label"] = _entries("labels", labels, n)[chosen]
    return found


def label_issues(
    scores: Mapping[str, Any], labels: Any, predictions: Any = None
) -> dict[str, NDArray[Any]]:
    """The same as a table of cleanlab's kind, one row per example, in the order of the examples.

    Args:
        scores: ``ledger.scores()`` of a ledger that was given logits.
        labels: The labels that were trained on, ``(n,)``.
        predictions: The classes that the network predicts, ``(n,)``.

    Returns:
        ``is_label_issue`` (mean margin below 0), ``label_score`` (mean probability of the label, 0
        to 1, low is suspect; NaN without a presentation), ``given_label``, and ``predicted_label``
        if there are predictions: arrays of shape ``(n,)``, as ``pandas.DataFrame`` takes them.

    Raises:
        TypeError: If ``scores`` is no mapping.
        ValueError: If a score is missing or none of numbers ``(n,)``, or the lengths differ.
    """
    columns = _checked(scores)
    n = len(columns["csl"])
    table = {
        "is_label_issue": columns["aum"] < 0,
        "label_score": columns["confidence"],
        "given_label": _entries("labels", labels, n),
    }
    if predictions is not None:
        table["predicted_label"] = _entries("predictions", predictions, n)
    return table


def _checked(scores: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores must map names to arrays, got {type(scores).__name__}; pass ledger.scores()"
        )
    if missing := [name for name in NEEDED if name not in scores]:
        raise ValueError(
            f"scores lack {', '.join(missing)}; give logits and targets to Ledger.update"
        )
    n = np.size(scores["csl"])
    columns = {name: _entries(f"scores[{name!r}]", scores[name], n) for name in NEEDED}
    for name, column in columns.items():
        if column.dtype.kind not in "iuf":
            raise ValueError(f"scores[{name!r}] must be real numbers, got {column.dtype}")
    return columns


def _entries(name: str, values: Any, n: int) -> NDArray[Any]:
    try:
        entries = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be an array, got {type(values).__name__}: {error}") from None
    if entries.shape != (n,):
        raise ValueError(
            f"{name} must have one entry for each of {n} examples, got {entries.shape}"
        )
    return entries
