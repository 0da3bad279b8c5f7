"""What one process adds to a ledger: a row for each presentation, in the order in which they came.

A row is an example's index and its scores; a column that came later begins at a later row. Rows
count once their update is written to ``updates``, which comes last: a process may be killed at any
moment. As a folder a log is one file of plain numbers for each column, and ``about.json``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.files import read_json, write_text
from memtools.ledger.vectors import FileVector, MemoryVector
from memtools.lock import Lock

__all__ = ["ABOUT", "DTYPES", "Log", "described"]

ABOUT = "about.json"
DTYPES = ("float32", "float16")
FORMAT = 1


class Log:
    """Rows of presentations, in memory or in a folder.

    Args:
        num_examples: Indices are below.
        dtype: Of the scores, ``"float32"`` or ``"float16"``.
        folder: Where to keep them; what is there already is gone on with.
        writable: Whether to add to them; otherwise the folder is left alone, in which another
            process may be writing, and only what is there now is seen.

    Raises:
        ValueError: If the folder holds a log of other examples or another dtype, or none of ours,
            if it is damaged, or if another process adds to it.
    """

    def __init__(
        self, num_examples: int, dtype: str, folder: Path | None = None, *, writable: bool = True
    ) -> None:
        self._num_examples, self._dtype, self._folder = num_examples, dtype, folder
        self.writable = writable
        self._lock = Lock(folder, "folder") if folder is not None and writable else None
        self._index_dtype = np.uint32 if num_examples <= 1 << 32 else np.int64
        self._first_rows: dict[str, int] = {}
        if folder is not None:
            self._refuse_others()
            self._first_rows = self._recorded_columns(folder)
        # Of each update: the number of its step, and of rows after it.
        self._updates = self._vector("updates", np.int64)
        self._index = self._vector("index", self._index_dtype)
        self._columns = {name: self._vector(f"column-{name}", dtype) for name in self._first_rows}
        self._recover()

    @property
    def place(self) -> str:
        """What it is called in errors."""
        return f"the log in {self._folder}" if self._folder else "the log in memory"

    @property
    def columns(self) -> list[str]:
        """Names of the scores."""
        return list(self._columns)

    def updates(self) -> NDArray[np.int64]:
        """Step, and rows so far, of every update: shape ``(U, 2)``."""
        return self._updates.values()[: 2 * self._count].reshape(-1, 2)

    def index(self) -> NDArray[Any]:
        """Which example each row is about."""
        return self._index.values()[: self.rows]

    def column(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """A score at some rows; NaN where it was not given."""
        if name not in self._columns:
            return np.full(len(rows), np.nan, np.float32)
        values, first = self._columns[name].values(), self._first_rows[name]
        if first == 0:
            return values[rows].astype(np.float32)
        found = np.full(len(rows), np.nan, np.float32)
        known = rows >= first
        found[known] = values[rows[known] - first]
        return found

    def append(
        self, step: int, index: NDArray[np.int64], values: dict[str, NDArray[np.float32]]
    ) -> None:
        """Add the rows of one update; a column begins with its first row."""
        self._refuse_others()
        if len(self._updates) != 2 * self._count:
            raise ValueError(
                f"folder {self._folder} has been added to by another ledger since this one was "
                "opened; go on with that one, or open it again with resume=True"
            )
        values = values if len(index) else {}
        missing = np.full(len(index), np.nan, self._dtype)
        try:
            if new := values.keys() - self._columns.keys():
                for name in sorted(new, key=list(values).index):
                    self._first_rows[name] = self.rows
                    self._columns[name] = self._vector(f"column-{name}", self._dtype)
                self._record_columns()
            self._index.append(index.astype(self._index_dtype))
            with np.errstate(over="ignore"):  # beyond float16's range is infinite
                for name, column in self._columns.items():
                    column.append(values.get(name, missing).astype(self._dtype))
            self._updates.append(np.array([step, self.rows + len(index)], np.int64))
        except BaseException:
            self._recover()
            raise
        self.rows, self.step, self._count = self.rows + len(index), step, self._count + 1

    def rewind(self, step: int) -> None:
        """Forget all updates after a step."""
        self._refuse_others()
        kept = int(np.searchsorted(self.updates()[:, 0], step, side="right"))
        self._updates.truncate(2 * kept)
        self._recover()

    def _refuse_others(self) -> None:
        if self._lock is not None:
            self._lock.take(shared=False)

    def _recover(self) -> None:
        """Leave out what a killed process did not finish."""
        whole = len(self._index)
        for name, column in self._columns.items():
            whole = min(whole, self._first_rows[name] + len(column))
        self._count = len(self._updates) // 2
        if (np.diff(self.updates(), axis=0, prepend=0) < 0).any():
            raise ValueError(
                f"{self.place} is damaged; begin a ledger in another folder, or put back the one "
                "that a checkpoint was made with"
            )
        self._count = int(np.searchsorted(self.updates()[:, 1], whole, side="right"))
        # Step of the last update and rows after it; -1 and none before the first.
        self.step, self.rows = map(int, self.updates()[-1]) if self._count else (-1, 0)
        kept = {name: row for name, row in self._first_rows.items() if row < self.rows}
        removed = [self._columns.pop(name) for name in self._first_rows.keys() - kept.keys()]
        self._first_rows = kept
        if not self.writable:
            return
        self._updates.truncate(2 * self._count)
        self._index.truncate(self.rows)
        for name, column in self._columns.items():
            column.truncate(self.rows - self._first_rows[name])
        for column in removed:
            column.remove()
        self._record_columns()

    def _vector(self, name: str, dtype: Any) -> FileVector | MemoryVector:
        if self._folder is None:
            return MemoryVector(dtype)
        return FileVector(self._folder / name, dtype)

    def _recorded_columns(self, folder: Path) -> dict[str, int]:
        if not (folder / ABOUT).exists():
            return {}
        about = described(folder)
        wanted = {"num_examples": self._num_examples, "dtype": self._dtype}
        for setting, value in wanted.items():
            if about[setting] != value:
                raise ValueError(
                    f"{folder} holds a ledger with {setting} {about[setting]}, got {value}; "
                    "name another folder"
                )
        return about["columns"]

    def _record_columns(self) -> None:
        if self._folder is None:
            return
        about = {
            "format": FORMAT,
            "num_examples": self._num_examples,
            "dtype": self._dtype,
            "columns": self._first_rows,
        }
        write_text(self._folder / ABOUT, json.dumps(about, indent=2) + "\n")


def described(folder: Path) -> dict[str, Any]:
    """What the log in a folder says about itself; raises ValueError where it is none of ours."""
    file = folder / ABOUT
    try:
        about = read_json(file)
        num_examples, dtype = int(about["num_examples"]), str(about["dtype"])
        columns = {str(name): int(row) for name, row in about["columns"].items()}
        is_ours = about["format"] == FORMAT and dtype in DTYPES and num_examples > 0
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        is_ours, num_examples, dtype, columns = False, 0, "", {}
    # Columns are names of files.
    if not is_ours or not all(name.isidentifier() and row >= 0 for name, row in columns.items()):
        raise ValueError(f"{file} does not describe a ledger of this version of memtools")
    return {"num_examples": num_examples, "dtype": dtype, "columns": columns}
