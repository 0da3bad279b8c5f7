"""The numbers of the study, by what was dropped."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memtools.studies.conditions import Condition
from memtools.studies.pruning.config import Config
from memtools.studies.summary import Curves

__all__ = ["Outcomes", "outcomes_of"]

Key = tuple[str, str, str | None, float | None, float | None]
"""Condition, kind, score, share that is dropped, position of a window."""


@dataclass(frozen=True)
class Outcomes:
    """All conditions and seeds of the study.

    Attributes:
        config: All settings.
        lines: Every number of the lines by its name, shape ``(seeds,)``, the mean over the draws
            of random parts; by condition, kind, score, share and position.
    """

    config: Config
    lines: dict[Key, dict[str, Curves]]

    def numbers(
        self,
        condition: Condition,
        kind: str,
        score: str | None = None,
        share: float | None = None,
        position: float | None = None,
    ) -> dict[str, Curves]:
        """What the lines of one kind say, one number per seed."""
        return self.lines[condition.key, kind, score, share, position]

    def accuracy(
        self,
        condition: Condition,
        kind: str,
        score: str | None = None,
        share: float = 0.0,
        position: float | None = None,
    ) -> Curves:
        """Held-out accuracy at the last update, one per seed."""
        return self.numbers(condition, kind, score, share, position)["validation_accuracy"]

    def gain(
        self,
        condition: Condition,
        kind: str,
        score: str,
        share: float,
        position: float | None = None,
    ) -> Curves:
        """Held-out accuracy above that without as many random examples, one per seed."""
        chosen = self.accuracy(condition, kind, score, share, position)
        return chosen - self.accuracy(condition, "random", None, share)

    def over_all(self, condition: Condition, kind: str, score: str, share: float) -> Curves:
        """Held-out accuracy above that with all examples, one per seed."""
        return self.accuracy(condition, kind, score, share) - self.accuracy(condition, "full")

    def area(self, condition: Condition, score: str) -> Curves:
        """Area under the ROC curve of finding corrupted examples, one per seed."""
        return self.numbers(condition, "detection", score)["auroc"]


NAMING = ("condition", "seed", "kind", "score", "share", "position", "draw")


def outcomes_of(rows: Sequence[dict[str, Any]], config: Config) -> Outcomes:
    """Bring the lines of a finished run into order.

    Args:
        rows: Lines of all trainings.
        config: All settings.

    Returns:
        The outcomes; NaN where a line has no number.
    """
    found: dict[Key, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        condition, kind = row["condition"], row["kind"]
        key = (condition, kind, row.get("score"), row.get("share"), row.get("position"))
        found[key][row["seed"]].append(row)
    return Outcomes(config, {key: _means(lines, config.seeds) for key, lines in found.items()})


def _means(lines: dict[int, list[dict[str, Any]]], seeds: Sequence[int]) -> dict[str, Curves]:
    names = [name for name in lines[seeds[0]][0] if name not in NAMING]
    return {
        name: np.array(
            [
                np.mean([np.nan if row[name] is None else row[name] for row in lines[seed]])
                for seed in seeds
            ],
            dtype=np.float64,
        )
        for name in names
    }
