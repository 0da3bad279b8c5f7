"""The history of every example over a training run, keyed by the example's index."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtools import scores
from memtools.extras import require
from memtools.files import replace_atomically

__all__ = ["Ledger"]

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


class Ledger:
    """Keeps what each example scored at each of its presentations.

    A call of :meth:`update` adds one presentation for every index in it, whatever the order and
    the batch size; examples may have different numbers of presentations. A score that was not
    given at a presentation is NaN there. Memory: 4 bytes for each example, presentation and score.

    Args:
        num_examples: Number of examples; indices go from 0 to ``num_examples - 1``.

    Raises:
        ValueError: If ``num_examples`` is not positive.

    Example:
        >>> import torch, memtools
        >>> ledger = memtools.Ledger(3)
        >>> ledger.update([2, 0], logits=torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        ...               targets=torch.tensor([0, 0]))
        >>> ledger.scores()["aum"]
        array([-1., nan,  2.], dtype=float32)
    """

    def __init__(self, num_examples: int) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        self.num_examples = num_examples
        self.presentations: NDArray[np.int64] = np.zeros(num_examples, dtype=np.int64)
        self._columns: dict[str, NDArray[np.float32]] = {}
        self._capacity = 8

    @property
    def columns(self) -> list[str]:
        """Names of the scores that have a history."""
        return list(self._columns)

    def update(
        self,
        indices: Any,
        *,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        loss: Any = None,
        **scores_given: Any,
    ) -> None:
        """Add one presentation for each of the examples.

        Args:
            indices: Which examples these are, shape ``(n,)``; one may occur more than once.
            logits: Shape ``(n, C)``; with ``targets`` they give the columns ``loss``,
                ``confidence``, ``el2n``, ``margin`` and ``correct``.
            targets: Class numbers of shape ``(n,)``.
            loss: Losses of shape ``(n,)``; takes the place of the cross-entropy of the logits.
            **scores_given: Any other score by its name, shape ``(n,)``.

        Raises:
            ValueError: If an index is out of range, a shape does not fit, ``logits`` comes without
                ``targets``, or nothing is given to record. The ledger is unchanged then.
        """
        index = _to_numpy(indices)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise ValueError(
                f"indices must be integers of shape (n,), got {index.dtype} of shape {index.shape}"
            )
        index = index.astype(np.int64)
        if index.size and not 0 <= index.min() <= index.max() < self.num_examples:
            raise ValueError(
                f"indices must lie in 0..{self.num_examples - 1}, "
                f"got values from {index.min()} to {index.max()}"
            )
        values = self._values(logits, targets, loss, scores_given)
        for name, column in values.items():
            if column.shape != index.shape:
                raise ValueError(
                    f"{name} must have one value for each of the {index.size} indices, "
                    f"got shape {column.shape}"
                )
        slots = self.presentations[index] + _occurrence(index)
        self._reserve(int(slots.max(initial=-1)) + 1, list(values))
        for name, column in values.items():
            self._columns[name][index, slots] = column
        np.add.at(self.presentations, index, 1)

    def history(self, column: str) -> NDArray[np.float32]:
        """One score at every presentation.

        Args:
            column: One of :attr:`columns`.

        Returns:
            Shape ``(num_examples, T)`` with T the largest number of presentations; NaN where there
            was none.

        Raises:
            KeyError: If there is no such column.
        """
        if column not in self._columns:
            raise KeyError(f"no column {column!r}; there are: {', '.join(self._columns) or 'none'}")
        return self._columns[column][:, : int(self.presentations.max())]

    def scores(self) -> dict[str, NDArray[Any]]:
        """A table of one row per example: ``pandas.DataFrame(ledger.scores())`` takes it as it is.

        Columns: ``index``, ``presentations``; from logits ``csl`` (sum of the losses), ``el2n``,
        ``aum`` (mean margin), ``confidence`` and its population standard deviation
        ``variability``, ``correctness`` (means over presentations), ``forgetting_events``,
        ``learning_time``; the mean of every other score under its own name.

        Returns:
            Arrays of shape ``(num_examples,)`` by name, float32 but for the first two; NaN where
            an example has no value.
        """
        table: dict[str, NDArray[Any]] = {
            "index": np.arange(self.num_examples),
            "presentations": self.presentations.copy(),
        }
        for column in self._columns:
            history = torch.from_numpy(self.history(column)).double()
            mean = history.nanmean(1)
            known = (~history.isnan()).sum(1)
            table[SUMMARIES.get(column, column)] = _float32(
                torch.where(known > 0, history.nansum(1), torch.nan) if column == "loss" else mean
            )
            if column == "confidence":
                deviation = (history - mean[:, None]).square().nanmean(1).sqrt()
                table["variability"] = _float32(deviation)
            if column == "correct":
                table["forgetting_events"] = _float32(scores.forgetting_events(history))
                table["learning_time"] = _float32(scores.learning_time(history))
        return table

    def state_dict(self) -> dict[str, Any]:
        """Everything the ledger holds, as tensors that :func:`torch.save` keeps."""
        return {
            "presentations": torch.from_numpy(self.presentations.copy()),
            "columns": {c: torch.from_numpy(self.history(c).copy()) for c in self._columns},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is of another number of examples.
        """
        presentations = state["presentations"].cpu().numpy().copy()
        if len(presentations) != self.num_examples:
            raise ValueError(
                f"state holds {len(presentations)} examples, this ledger {self.num_examples}"
            )
        self.presentations = presentations
        self._columns = {}
        self._reserve(int(presentations.max()), list(state["columns"]))
        for name, history in state["columns"].items():
            self._columns[name][:, : history.shape[1]] = history.cpu().numpy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file: one row per example, each score a list over its presentations.

        The file appears whole or not at all. Needs pyarrow (``pip install "memtools[study]"``).

        Args:
            path: The file to write.
        """
        pa, parquet = require("pyarrow"), require("pyarrow.parquet")
        columns = {
            "index": np.arange(self.num_examples),
            "presentations": self.presentations,
        }
        offsets = np.concatenate([[0], np.cumsum(self.presentations)]).astype(np.int32)
        happened = np.arange(int(self.presentations.max())) < self.presentations[:, None]
        for name in self._columns:
            columns[name] = pa.ListArray.from_arrays(offsets, self.history(name)[happened])
        with replace_atomically(path) as temporary:
            # Scores hardly repeat: a dictionary of them would only take room.
            parquet.write_table(
                pa.table(columns), temporary, compression="zstd", use_dictionary=False
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ledger":
        """Read what :meth:`save` wrote.

        Args:
            path: The file to read.

        Returns:
            The ledger.

        Raises:
            ValueError: If the file is no ledger, or its rows are not in order.
        """
        table = require("pyarrow.parquet").read_table(Path(path))
        if not {"index", "presentations"} <= set(table.column_names):
            raise ValueError(f"{path} is no ledger: it has the columns {table.column_names}")
        if not np.array_equal(table["index"], np.arange(table.num_rows)):
            raise ValueError(
                f"{path} does not hold the examples 0..{table.num_rows - 1} in order; "
                "sort it by `index`, and keep all rows"
            )
        ledger = cls(table.num_rows)
        presentations = table["presentations"].to_numpy().astype(np.int64)
        happened = np.arange(int(presentations.max())) < presentations[:, None]
        names = [n for n in table.column_names if n not in ("index", "presentations")]
        ledger._reserve(happened.shape[1], names)
        for name in names:
            history = ledger._columns[name][:, : happened.shape[1]]
            history[happened] = table[name].combine_chunks().values.to_numpy(zero_copy_only=False)
        ledger.presentations = presentations
        return ledger

    def _values(
        self, logits: Tensor | None, targets: Tensor | None, loss: Any, given: dict[str, Any]
    ) -> dict[str, NDArray[np.float32]]:
        values: dict[str, Any] = {}
        if logits is not None:
            if targets is None:
                raise ValueError("targets must be given together with logits")
            values = {
                "loss": scores.loss(logits, targets) if loss is None else loss,
                "confidence": scores.confidence(logits, targets),
                "el2n": scores.el2n(logits, targets),
                "margin": scores.margin(logits, targets),
                "correct": scores.correctness(logits, targets),
            }
        elif loss is not None:
            values = {"loss": loss}
        for name, value in given.items():
            if name in values or name in RESERVED:
                raise ValueError(f"{name} is a column of the ledger's own; choose another name")
            values[name] = value
        if not values:
            raise ValueError("logits, loss or a score of another name must be given, got none")
        return {name: _to_numpy(value).astype(np.float32) for name, value in values.items()}

    def _reserve(self, presentations: int, columns: list[str]) -> None:
        """Make room for so many presentations, doubling so that updates stay cheap."""
        while self._capacity < presentations:
            self._capacity *= 2
        for name in [*self._columns, *columns]:
            old = self._columns.get(name, np.empty((self.num_examples, 0), np.float32))
            if old.shape[1] < self._capacity:
                new = np.full((self.num_examples, self._capacity), np.nan, np.float32)
                new[:, : old.shape[1]] = old
                self._columns[name] = new


def _occurrence(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry has occurred before it in the same batch."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.searchsorted(ordered, ordered, side="left")
    occurrence = np.empty_like(index)
    occurrence[order] = np.arange(len(index)) - first
    return occurrence


def _to_numpy(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _float32(values: Tensor) -> NDArray[np.float32]:
    return values.float().numpy()
