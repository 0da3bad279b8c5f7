"""What a user gives to :meth:`memtools.Ledger.update`, checked."""

from typing import Any

import numpy as np
import torch
from memtools_kernels import logit_scores
from numpy.typing import NDArray
from torch import Tensor

from memtools.batch import check_logits, check_targets
from memtools.ledger.summary import RESERVED

__all__ = ["checked_indices", "checked_scores"]


def checked_indices(indices: Any, num_examples: int) -> NDArray[np.int64]:
    """Indices of shape ``(n,)``, all of which are there."""
    index = _to_numpy(indices)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise ValueError(
            f"indices must be integers of shape (n,), got {index.dtype} of shape {index.shape}"
        )
    if index.size and not 0 <= index.min() <= index.max() < num_examples:
        raise ValueError(
            f"indices must lie in 0..{num_examples - 1}, "
            f"got values from {index.min()} to {index.max()}"
        )
    return index.astype(np.int64)


def checked_scores(
    n: int, logits: Tensor | None, targets: Tensor | None, loss: Any, given: dict[str, Any]
) -> dict[str, NDArray[np.float32]]:
    """What is to be recorded of n examples, by name, each of shape ``(n,)``."""
    values: dict[str, Any] = {}
    if logits is not None:
        if targets is None:
            raise ValueError("targets must be given together with logits")
        values = _of_logits(logits, targets)
    if loss is not None:
        values["loss"] = loss
    for name, value in given.items():
        if name in values or name in RESERVED:
            raise ValueError(f"{name} is a column of the ledger's own; choose another name")
        if not name.isidentifier():
            raise ValueError(f"{name!r} is no name for a column; use letters, digits and _")
        values[name] = value
    if not values:
        raise ValueError("logits, loss or a score of another name must be given, got none")
    columns = {name: _to_numpy(value).astype(np.float32) for name, value in values.items()}
    for name, column in columns.items():
        if column.shape != (n,):
            raise ValueError(
                f"{name} must have one value for each of the {n} indices, got shape {column.shape}"
            )
    return columns


def _of_logits(logits: Tensor, targets: Tensor) -> dict[str, Any]:
    check_logits(logits)
    check_targets(targets, logits.shape[1])
    if len(targets) != len(logits):
        raise ValueError(
            f"targets must have one entry for each of the {len(logits)} rows of logits, "
            f"got shape {tuple(targets.shape)}; slice both alike"
        )
    found = logit_scores(logits.detach(), targets.long())
    # From a GPU in one piece.
    fields = [found.loss, found.probability, found.el2n, found.margin, found.correct.float()]
    names = ["loss", "confidence", "el2n", "margin", "correct"]
    return dict(zip(names, _to_numpy(torch.stack([x.float() for x in fields])), strict=True))


def _to_numpy(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)
