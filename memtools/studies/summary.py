"""What a study came to: tables, and sentences that say no more than the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.studies.cells import Cell
from memtools.studies.conditions import Condition

__all__ = ["Curves", "Outcome", "Summary", "Table", "curves_of", "percent"]

Curves = NDArray[np.float64]
"""One row per seed, one column per line of a training, or per example."""


@dataclass(frozen=True)
class Outcome:
    """All seeds of one condition; studies add what they have beyond curves.

    Attributes:
        condition: What they were trained on.
        curves: Every number of the lines by name, shape ``(seeds, lines)``.
    """

    condition: Condition
    curves: dict[str, Curves]

    def final(self, name: str) -> Curves:
        """Values of the last line, one per seed."""
        return self.curves[name][:, -1]


@dataclass(frozen=True)
class Table:
    """A table in words: the first column names the row, the others are short.

    Attributes:
        title: What it is about.
        columns: Their names.
        rows: Cells of each row.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]

    @property
    def is_wordy(self) -> bool:
        """Whether the first column holds sentences, which need several lines."""
        return any(len(row[0]) > 50 for row in self.rows)


@dataclass(frozen=True)
class Summary:
    """A study in words and numbers.

    Attributes:
        outcomes: The numbers, in the study's own shape.
        tables: Tables of them.
        sentences: What they show, each with its topic before a colon.
    """

    outcomes: Any
    tables: list[Table]
    sentences: list[str]


def curves_of(rows: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> dict[str, Curves]:
    """Every number of the lines of some trainings by name; NaN where there is none.

    Args:
        rows: Lines of all trainings.
        cells: Trainings that differ in their seed alone.

    Returns:
        Arrays of shape ``(len(cells), lines)``.
    """
    of_cells = [
        [row for row in rows if all(row[name] == value for name, value in cell.values.items())]
        for cell in cells
    ]
    names = [name for name in of_cells[0][0] if name not in cells[0].values]
    return {
        name: np.array(
            [[np.nan if row[name] is None else row[name] for row in lines] for lines in of_cells]
        )
        for name in names
    }


def percent(values: Sequence[float] | Curves) -> str:
    """The mean of shares, never rounded to 0% or 100% if it is not just that."""
    share = 100 * float(np.mean(values))
    if 0 < share < 0.1 or 99.9 < share < 100:
        return "<0.1%" if share < 1 else ">99.9%"
    return f"{share:.0f}%" if share in (0, 100) or 1 <= share <= 99 else f"{share:.1f}%"
