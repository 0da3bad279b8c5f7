"""The folder of a table of scores: what it was made with, and its chunks."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require
from memtools.files import read_json, refuse_links, replace_atomically, write_text
from memtools.lock import LOCK
from memtools.scoring.wanted import CRITICAL, SCORES

__all__ = ["Chunks", "ScoreFolder", "recorded_settings"]

ABOUT = "_about.json"
MOST_CHUNKS = 10**6
"""With more, the names of the files would no longer sort as the examples do."""


@dataclass(frozen=True)
class Chunks:
    """How the examples are cut into files.

    Attributes:
        num_examples: Of the data set.
        size: Examples a chunk; the last has fewer.
        columns: Names of the columns, ``index`` first.
    """

    num_examples: int
    size: int
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return -(-self.num_examples // self.size)

    def indices(self, chunk: int) -> range:
        """The examples of a chunk."""
        return range(chunk * self.size, min((chunk + 1) * self.size, self.num_examples))

    def batches(self, chunk: int, batch_size: int) -> list[range]:
        """The examples of a chunk in batches, which do not depend on the other chunks."""
        indices = self.indices(chunk)
        return [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]


class ScoreFolder:
    """A folder that is filled with chunks, each written whole or not at all.

    Attributes:
        path: The folder.
        about: What ``_about.json`` holds.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        settings = about["settings"]
        number, size = about["facts"]["num_examples"], settings["chunk_size"]
        if not (type(number) is type(size) is int and 0 < number <= size * MOST_CHUNKS):
            raise ValueError(f"{number} examples cannot be cut into chunks of {size}")
        if not set(settings["scores"]) <= set(SCORES):
            raise ValueError(f"scores must be of {', '.join(SCORES)}, got {settings['scores']}")
        self.chunks = Chunks(number, size, ("index", "target", *settings["scores"]))

    @classmethod
    def at(cls, path: Path) -> "ScoreFolder | None":
        """The folder at a path, ``None`` if there is nothing.

        Raises:
            ValueError: If there is something else.
        """
        if not path.exists():
            return None
        if path.is_dir() and all(p.name.endswith(".tmp") or p.name == LOCK for p in path.iterdir()):
            refuse_links(path)
            return None
        try:
            about = read_json(path / ABOUT)
            _flat(about)
            folder = cls(path, about)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"out {path} exists and is no folder of scores (no {ABOUT} that can be read); "
                "name another one"
            ) from error
        refuse_links(path)
        return folder

    @classmethod
    def begin(cls, path: Path, about: dict[str, Any]) -> "ScoreFolder":
        """Write ``_about.json`` into a new folder.

        Raises:
            ValueError: If it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / ABOUT, json.dumps(about, indent=2) + "\n")
        except OSError as error:
            raise ValueError(
                f"out {path} cannot be written ({error.strerror}); name another folder"
            ) from error
        return cls(path, about)

    def refuse_others(self, about: dict[str, Any]) -> None:
        """Raise unless the folder was made with the same settings, by the same software.

        Raises:
            ValueError: If not, naming the first difference.
        """
        here, there = _flat(about), _flat(self.about)
        for name in [*here, *(there.keys() - here.keys())]:
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"out {self.path} holds scores with {name} {there.get(name)!r}, got "
                    f"{here.get(name)!r}; go on with the same, or name another folder"
                )

    def file(self, chunk: int) -> Path:
        """Where the scores of a chunk are."""
        return self.path / f"part-{chunk:06d}.parquet"

    def missing(self) -> list[int]:
        """The chunks that are not there, or not whole."""
        there = {entry.name for entry in os.scandir(self.path)}
        return [
            chunk
            for chunk in range(len(self.chunks))
            if self.file(chunk).name not in there or not self._is_whole(chunk)
        ]

    def write(self, chunk: int, columns: dict[str, NDArray[Any]]) -> None:
        """Write the scores of a chunk."""
        pa, parquet = require("pyarrow"), require("pyarrow.parquet")
        arrays: dict[str, Any] = {}
        for name in self.chunks.columns:
            values = columns[name]
            if name == CRITICAL:  # so that it selects rows, and its mean is a ratio, in any reader
                arrays[name] = pa.array(values == 1, mask=np.isnan(values))
            else:
                arrays[name] = pa.array(values)
        with replace_atomically(self.file(chunk)) as temporary:
            parquet.write_table(pa.table(arrays), temporary, compression="zstd")

    def _is_whole(self, chunk: int) -> bool:
        """Whether a file holds the right rows, by what stands at its end."""
        pa, parquet = require("pyarrow"), require("pyarrow.parquet")
        indices = self.chunks.indices(chunk)
        try:
            end = parquet.read_metadata(self.file(chunk))
        except (OSError, ValueError, pa.ArrowException):
            return False
        names = tuple(end.schema.names)
        if names != self.chunks.columns or end.num_rows != len(indices) or end.num_row_groups == 0:
            return False
        first = end.row_group(0).column(0).statistics
        last = end.row_group(end.num_row_groups - 1).column(0).statistics
        return first is not None and (first.min, last.max) == (indices[0], indices[-1])


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    """All that must be the same for numbers to be the same, by name."""
    versions = {f"version of {name}": about["versions"][name] for name in ("torch", "memtools")}
    return {**about["settings"], **about["facts"], "device": about["device"], **versions}


def recorded_settings(path: Path) -> dict[str, Any] | None:
    """The arguments that the scores in a folder were made with, ``None`` if there are none.

    Raises:
        ValueError: If there is something else at that path.
    """
    folder = ScoreFolder.at(path)
    return None if folder is None else folder.about["settings"]
