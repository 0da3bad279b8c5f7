"""The scores of a folder as one table."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require
from memtools.scoring.folder import ScoreFolder
from memtools.scoring.wanted import CRITICAL

__all__ = ["read"]


def read(
    folder: str | os.PathLike[str], columns: Iterable[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The scores that :func:`memtools.scoring.score` wrote, in the order of the examples.

    Args:
        folder: Where they are.
        columns: Names of those to read; ``None`` for all.

    Returns:
        Each column, ``(n,)`` for n examples: ``index``, ``target``, and the scores. ``is_critical``
        is float32: 1, 0, and NaN for an example that could not be searched.

    Raises:
        ValueError: If there are no scores, a column is unknown, or a chunk is missing or damaged.
        ModuleNotFoundError: If pyarrow is not installed.
    """
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    found = ScoreFolder.at(Path(folder))
    if found is None:
        raise ValueError(f"folder {folder} holds no scores; write some with memtools score")
    names = list(found.chunks.columns if columns is None else columns)
    if unknown := [name for name in names if name not in found.chunks.columns]:
        raise ValueError(
            f"columns must be of {', '.join(found.chunks.columns)}; got {', '.join(unknown)}"
        )
    missing = found.missing()
    if missing:
        raise ValueError(
            f"folder {folder} lacks {len(missing)} of {len(found.chunks)} chunks (first: "
            f"{found.file(missing[0]).name}); go on with memtools score --resume"
        )
    table: dict[str, NDArray[Any]] = {}
    for chunk in range(len(found.chunks)):
        try:
            part = parquet.read_table(found.file(chunk), columns=names)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(
                f"{found.file(chunk)} cannot be read; remove it and go on with --resume"
            ) from error
        indices = found.chunks.indices(chunk)
        for name in names:
            values = part[name].to_numpy()
            if name == CRITICAL:
                values = values.astype(np.float32)  # null is None is NaN
            if name not in table:
                table[name] = np.empty(found.chunks.num_examples, values.dtype)
            table[name][indices.start : indices.stop] = values
    return table
