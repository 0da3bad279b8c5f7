"""Arrays that grow at their end: in memory, or in a file that is mapped to be read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from memtools.files import naming

__all__ = ["FileVector", "MemoryVector"]


class MemoryVector:
    """Grows by doubling."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._data: NDArray[Any] = np.empty(1024, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        size = self._size + len(values)
        if size > len(self._data):
            grown = np.empty(max(size, 2 * len(self._data)), self._data.dtype)
            grown[: self._size] = self.values()
            self._data = grown
        self._data[self._size : size] = values
        self._size = size

    def truncate(self, size: int) -> None:
        """Forget all values but the first."""
        self._size = min(size, self._size)

    def values(self) -> NDArray[Any]:
        """All of them, to be read."""
        return self._data[: self._size]

    def remove(self) -> None:
        """Forget all."""
        self._size = 0


class FileVector:
    """Numbers in a file, one after the other, without a header.

    The file is open during a call only: nothing is lost in a buffer when the process is killed, and
    a ledger can be pickled and forked.
    """

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._mapped: NDArray[Any] = np.empty(0, dtype)

    def __len__(self) -> int:
        return self._bytes() // self._dtype.itemsize

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        data = memoryview(values.astype(self._dtype).tobytes())
        with naming(self._path), self._path.open("ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]

    def truncate(self, size: int) -> None:
        """Forget all values but the first, and a number of which only a part was written."""
        if self._bytes() > size * self._dtype.itemsize:
            self._mapped = np.empty(0, self._dtype)
            os.truncate(self._path, size * self._dtype.itemsize)

    def values(self) -> NDArray[Any]:
        """All of them, to be read; the system brings pages in as they are needed."""
        size = len(self)
        if size != len(self._mapped):
            # Mapped once for all readers: to bring the pages in again takes longer than to read.
            self._mapped = np.empty(0, self._dtype)
            if size:
                self._mapped = np.memmap(self._path, self._dtype, "r", shape=(size,))
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped, which would be copied."""
        return vars(self) | {"_mapped": np.empty(0, self._dtype)}

    def remove(self) -> None:
        """Delete the file."""
        self._mapped = np.empty(0, self._dtype)
        self._path.unlink(missing_ok=True)

    def _bytes(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0
