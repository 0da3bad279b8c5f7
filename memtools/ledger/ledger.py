"""A ledger: what each example scored at each of its presentations."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtools.files import refuse_links
from memtools.ledger import parquet
from memtools.ledger.arguments import checked_indices, checked_scores
from memtools.ledger.log import DTYPES, Log, described
from memtools.ledger.processes import name_of_log, rank, world_size
from memtools.ledger.ranges import counts, longest, ranges
from memtools.ledger.summary import ranked, summarised

__all__ = ["Ledger"]


class Ledger:
    """Keeps what each example scored at each of its presentations.

    A call of :meth:`update` adds one presentation for every index in it, whatever the order and
    the batch size; examples may have different numbers of presentations. A score that was not
    given at a presentation is NaN there.

    In memory, or in a folder, which takes no memory to speak of however many examples there are:
    4 bytes for each presentation, and 4 (float16: 2) for each of its scores. An update is there
    whole or not at all, also when the process is killed. In a folder each process of a distributed
    training writes a log of its own, and whoever reads the ledger sees all of them; presentations
    are in the order of their steps. In memory each process has a ledger of its own.

    Args:
        num_examples: Number of examples; indices go from 0 to ``num_examples - 1``.
        folder: Where to keep it; ``None`` is in memory.
        dtype: Of the scores that are kept: ``"float32"``, or ``"float16"``, whose largest number
            is 65504 and smallest 6e-8, with three digits.
        resume: Whether to go on with what ``folder`` holds already, if anything.

    Raises:
        ValueError: If ``num_examples`` is not positive, ``dtype`` is another, or the folder holds
            a ledger already, without ``resume`` or of other settings.

    Example:
        >>> import torch, memtools
        >>> ledger = memtools.Ledger(3)
        >>> ledger.update([2, 0], logits=torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        ...               targets=torch.tensor([0, 0]))
        >>> ledger.scores()["aum"]
        array([-1., nan,  2.], dtype=float32)
    """

    def __init__(
        self,
        num_examples: int,
        folder: str | os.PathLike[str] | None = None,
        *,
        dtype: str = "float32",
        resume: bool = False,
    ) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be "float32" or "float16", got {dtype!r}')
        self.num_examples, self.dtype = num_examples, dtype
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            refuse_links(self.folder)
        own = None if self.folder is None else self.folder / name_of_log(rank())
        if own is not None and own.exists() and not resume:
            raise ValueError(
                f"folder {self.folder} holds a ledger already; pass resume=True to go on with "
                "it, Ledger.open to read it, or name another folder"
            )
        self._is_read_only = False
        # In a folder it is opened by the first update: only then is it sure which process this is.
        self._opened: dict[str, Log] = {} if self.folder else {"": Log(num_examples, dtype)}
        if self.folder is not None and resume:
            self._logs()  # which refuses other settings at once

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Ledger":
        """The ledger in a folder, to be read, also while others write to it.

        Args:
            folder: The folder.

        Returns:
            The ledger; to go on with it, use the constructor.

        Raises:
            ValueError: If there is none.
        """
        logs = sorted(Path(folder).glob("log-*"))
        if not logs:
            raise ValueError(f"folder {folder} holds no ledger")
        refuse_links(Path(folder))
        about = described(logs[0])
        ledger = cls(about["num_examples"], dtype=about["dtype"])
        ledger.folder, ledger._is_read_only = Path(folder), True
        return ledger

    @property
    def columns(self) -> list[str]:
        """Names of the scores that have a history."""
        return _columns(self._logs())

    @property
    def presentations(self) -> NDArray[np.int64]:
        """How often each example was presented, shape ``(num_examples,)``."""
        return counts(self._logs(), self.num_examples)

    def update(
        self,
        indices: Any,
        *,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        loss: Any = None,
        step: int | None = None,
        **scores_given: Any,
    ) -> None:
        """Add one presentation for each of the examples.

        Args:
            indices: Which examples these are, shape ``(n,)``; one may occur more than once.
            logits: Shape ``(n, C)``; with ``targets`` they give the columns ``loss``,
                ``confidence``, ``el2n``, ``margin`` and ``correct``.
            targets: Class numbers of shape ``(n,)``.
            loss: Losses of shape ``(n,)``; takes the place of the cross-entropy of the logits.
            step: Number of the training step, which does not fall; it puts what several processes
                add into order. ``None`` is one more than at the last update of this process.
            **scores_given: Any other score by its name, shape ``(n,)``.

        Raises:
            ValueError: If an index is out of range, a shape does not fit, ``logits`` comes without
                ``targets``, ``step`` has fallen, nothing is given to record, or the ledger was
                opened to be read. The ledger is unchanged then.
            OSError: If the disk is full, or fails. The ledger is unchanged then, too.
        """
        self._refuse_if_read_only()
        index = checked_indices(indices, self.num_examples)
        values = checked_scores(len(index), logits, targets, loss, scores_given)
        step = self._log.step + 1 if step is None else step
        if step < max(0, self._log.step):
            raise ValueError(f"step must be at least {max(0, self._log.step)}, got {step}")
        self._log.append(step, index, values)

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
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; there are: {', '.join(self.columns) or 'none'}")
        logs = self._logs()
        width = longest(logs, self.num_examples)
        history = np.empty((self.num_examples, width), np.float32)
        for part in ranges(logs, self.num_examples):
            history[part.start : part.stop] = part.history(column, width)
        return history

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
        logs, table = self._logs(), {}
        columns, width = _columns(logs), longest(logs, self.num_examples)
        for part in ranges(logs, self.num_examples):
            for name, values in summarised(part, columns, width).items():
                whole = table.setdefault(name, np.empty(self.num_examples, values.dtype))
                whole[part.start : part.stop] = values
        return table

    def rank(self, by: str = "csl") -> NDArray[np.int64]:
        """Indices of all examples, the hardest first.

        Args:
            by: A column of :meth:`scores`. Low values are hard for ``aum``, ``confidence`` and
                ``correctness``, high values for all others.

        Returns:
            Shape ``(num_examples,)``; equal ones in the order of their indices, examples without a
            value last.

        Raises:
            KeyError: If there is no such column.
        """
        return ranked(self.scores(), by)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as tensors that :func:`torch.save` keeps.

        In memory that is everything; in a folder the number of the step, to which
        :meth:`load_state_dict` goes back, so that nothing is doubled when a training goes on from
        the checkpoint.
        """
        if self.folder is not None:
            return {"step": torch.tensor(max((log.step for log in self._logs()), default=-1))}
        rows = np.arange(self._log.rows)
        return {
            "num_examples": torch.tensor(self.num_examples),
            "updates": torch.from_numpy(self._log.updates().copy()),
            "index": torch.from_numpy(self._log.index().astype(np.int64)),
            "columns": {c: torch.from_numpy(self._log.column(c, rows)) for c in self.columns},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called.

        In a folder, what was added since is deleted; the first process does so for processes that
        are no longer there.

        Raises:
            ValueError: If it is of another number of examples or of another kind of ledger, or the
                folder ends before.
        """
        if ("step" in state) != (self.folder is not None):
            kinds = "of a ledger in a folder", "of one in memory"
            came, own = kinds if "step" in state else kinds[::-1]
            raise ValueError(f"state is {came}, this is {own.removeprefix('of ')}")
        if self.folder is not None:
            self._rewind(int(state["step"]))
            return
        if int(state["num_examples"]) != self.num_examples:
            raise ValueError(
                f"state holds {int(state['num_examples'])} examples, this ledger "
                f"{self.num_examples}"
            )
        log = Log(self.num_examples, self.dtype)
        index = checked_indices(state["index"], self.num_examples)
        columns = {name: values.cpu().numpy() for name, values in state["columns"].items()}
        ends = state["updates"][:, 1]
        if not all(
            len(column) == len(index) == max(ends, default=0) for column in columns.values()
        ):
            raise ValueError("state has columns, an index and updates of different lengths")
        begin = 0
        for step, end in state["updates"].tolist():
            rows = slice(begin, end)
            log.append(step, index[rows], {name: column[rows] for name, column in columns.items()})
            begin = end
        self._opened = {"": log}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file: one row per example, each score a list over its presentations.

        The file appears whole or not at all. Needs pyarrow (``pip install "memtools[study]"``).

        Args:
            path: The file to write.
        """
        logs = self._logs()
        parquet.write(path, _columns(logs), ranges(logs, self.num_examples))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ledger":
        """Read what :meth:`save` wrote.

        Args:
            path: The file to read.

        Returns:
            The ledger, in memory; the number of a presentation of an example is its step.

        Raises:
            ValueError: If the file is no ledger, or its rows are not in order.
        """
        presentations, columns = parquet.read(Path(path))
        ledger = cls(len(presentations))
        for step in range(int(presentations.max()) if columns else 0):
            (index,) = np.nonzero(presentations > step)
            values = {name: history[index, step] for name, history in columns.items()}
            ledger._log.append(step, index, values)
        return ledger

    def __getstate__(self) -> dict[str, Any]:
        """By its place, if it has one: a log is open, and locked, in one process only."""
        return vars(self) | ({} if self.folder is None else {"_opened": {}})

    def _logs(self) -> Sequence[Log]:
        """The logs of all processes."""
        if self.folder is None:
            return [self._log]
        paths = sorted(self.folder.glob("log-*"))
        return [self._opened.get(path.name) or self._other(path) for path in paths]

    @property
    def _log(self) -> Log:
        """That of this process."""
        if self.folder is None:
            return self._opened[""]
        name = name_of_log(rank())
        if name not in self._opened:
            # Not beside that of a process which this one was forked from.
            self._opened = {name: self._other(self.folder / name, writable=True)}
        return self._opened[name]

    def _other(self, path: Path, *, writable: bool = False) -> Log:
        return Log(self.num_examples, self.dtype, path, writable=writable)

    def _refuse_if_read_only(self) -> None:
        if self._is_read_only:
            raise ValueError(
                f"this ledger was opened to be read; Ledger({self.num_examples}, "
                f"{str(self.folder)!r}, resume=True) goes on with it"
            )

    def _rewind(self, step: int) -> None:
        self._refuse_if_read_only()
        last = max((log.step for log in self._logs()), default=-1)
        if last < step:
            raise ValueError(
                f"state was made at step {step}, but the ledger in {self.folder} ends at {last}; "
                "it has lost what was recorded since, or is another one"
            )
        self._log.rewind(step)
        if rank() == 0 and self.folder is not None:
            gone = name_of_log(world_size())
            for path in self.folder.glob("log-*"):
                if path.name >= gone:
                    self._other(path, writable=True).rewind(step)


def _columns(logs: Sequence[Log]) -> list[str]:
    return list(dict.fromkeys(name for log in logs for name in log.columns))
