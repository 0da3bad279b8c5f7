"""Which parts of the training set a network is trained on."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memtools import pruning, seeds
from memtools.studies.pruning.config import Config
from memtools.studies.pruning.methods import METHODS

__all__ = ["Subset", "indices_of", "random_shares", "subsets"]


class Subset(NamedTuple):
    """A part of the training set.

    Attributes:
        kind: What is done: ``"full"``, ``"random"``, ``"hardest"`` and ``"easiest"`` (what is
            dropped), or ``"window"`` (what is kept).
        score: One of the scores; ``None`` for the full set and random parts.
        share: Share of the examples that is dropped.
        position: Where a window begins.
        draw: Which of the random parts of a size.
    """

    kind: str
    score: str | None = None
    share: float = 0.0
    position: float | None = None
    draw: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        """What its line begins with."""
        return self._asdict()


def random_shares(config: Config) -> list[float]:
    """Shares that are dropped at random: all that are dropped by a score."""
    return sorted({*config.shares, 1 - config.window_width})


def subsets(config: Config) -> Iterator[Subset]:
    """All parts of the training set, in order."""
    yield Subset("full")
    for share in random_shares(config):
        for draw in range(config.random_draws):
            yield Subset("random", share=share, draw=draw)
    for score in METHODS:
        for kind in ("hardest", "easiest"):
            for share in config.shares:
                yield Subset(kind, score, share)
        for position in config.window_positions:
            yield Subset("window", score, 1 - config.window_width, position)


def indices_of(subset: Subset, ranks: Mapping[str, Tensor], n: int, seed: int) -> Tensor:
    """The examples of a part.

    Args:
        subset: The part.
        ranks: From the easiest example to the hardest, by score.
        n: Size of the training set.
        seed: Fixes what is random.

    Returns:
        Indices, ascending; for equal shares equally many.
    """
    if subset.score is None:
        # Random ranks: then numbers are rounded as they are for the scores.
        name = f"{subset.share:.6g}"
        drawn = seeds.generator(seed, "random subset", name, subset.draw or 0)
        return pruning.drop(torch.randperm(n, generator=drawn), subset.share)
    of_score = ranks[subset.score]
    if subset.kind == "window":
        assert subset.position is not None
        size = n - round(subset.share * n)
        # Whole numbers of examples, so that each window is as large as what is left elsewhere.
        begin = min(round(subset.position * n), n - size)
        return pruning.window(of_score, begin / n, (begin + size) / n)
    return pruning.drop(of_score, subset.share, hardest=subset.kind == "hardest")
