"""Ledgers as Parquet files: one row per example, each score a list over its presentations."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memtools.extras import require
from memtools.files import replace_atomically
from memtools.ledger.ranges import Range

__all__ = ["read", "write"]


def write(path: str | os.PathLike[str], columns: list[str], parts: Iterable[Range]) -> None:
    """Write a file, range after range; it appears whole or not at all."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    whole = {"index": pa.int64(), "presentations": pa.int64()}
    schema = pa.schema(whole | dict.fromkeys(columns, pa.list_(pa.float32())))
    # Scores hardly repeat: a dictionary of them would only take room.
    options = {"compression": "zstd", "use_dictionary": False}
    with (
        replace_atomically(path) as temporary,
        parquet.ParquetWriter(temporary, schema, **options) as writer,
    ):
        for part in parts:
            table = {
                "index": np.arange(part.start, part.stop),
                "presentations": part.counts,
            }
            offsets = np.concatenate([[0], np.cumsum(part.counts)]).astype(np.int32)
            width = int(part.counts.max())
            happened = np.arange(width) < part.counts[:, None]
            for name in columns:
                values = part.history(name, width)[happened]
                table[name] = pa.ListArray.from_arrays(offsets, values)
            writer.write_table(pa.table(table, schema=schema))


def read(path: Path) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Numbers of presentations, and the scores at each by name, shape ``(n, T)``."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read; save the ledger again ({error})") from error
    if not {"index", "presentations"} <= set(table.column_names):
        raise ValueError(f"{path} is no ledger: it has the columns {table.column_names}")
    if not np.array_equal(table["index"], np.arange(table.num_rows)):
        raise ValueError(
            f"{path} does not hold the examples 0..{table.num_rows - 1} in order; "
            "sort it by `index`, and keep all rows"
        )
    presentations = table["presentations"].to_numpy()
    names = [name for name in table.column_names if name not in ("index", "presentations")]
    for name in names:
        lists = table[name].combine_chunks()
        if not (
            pa.types.is_list(lists.type)
            and pa.types.is_floating(lists.type.value_type)
            and np.array_equal(lists.value_lengths(), presentations)
        ):
            raise ValueError(
                f"{path} is no ledger: {name} does not have a number for each presentation"
            )
    longest = int(presentations.max(initial=0)) if names else 0
    happened = np.arange(longest) < presentations[:, None]
    columns = {name: np.full(happened.shape, np.nan, np.float32) for name in names}
    for name, history in columns.items():
        history[happened] = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return presentations.astype(np.int64), columns
