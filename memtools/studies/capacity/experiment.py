"""Trains networks of every width on every share of noise, all of one width at once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from memtools.data import Tensors
from memtools.studies.capacity.config import Config
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.conditions import Condition
from memtools.studies.data import Data, corrupt
from memtools.studies.ensembles import run_ensembles, train_members
from memtools.studies.folder import RunFolder
from memtools.studies.networks import build_network
from memtools.studies.networks import prepare as prepare_networks
from memtools.training import Member

__all__ = ["NOISE", "REMOVED", "cell_of", "cells", "prepare", "run"]

NOISE = ("inputs", "labels")
"""What of an example is random."""

REMOVED = "removed"
"""The control: without the examples that are random elsewhere."""


def cell_of(seed: int, width: int) -> Cell:
    """All networks of one width and seed."""
    return Cell(None, seed, f"width {width}")


def cells(config: Config) -> list[Cell]:
    """All trainings of the study; the widest first, as they take longest."""
    return [cell_of(seed, width) for width in reversed(config.widths) for seed in config.seeds]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_networks(config, config.widths)
    n = len(data.train)
    chosen = [round(share * n) for share in config.levels]
    if len(set(chosen)) < len(chosen):
        raise ValueError(
            f"shares {list(config.shares)} of {n} examples make {chosen[1:]} random; they must "
            "differ, and none be 0"
        )
    if n - chosen[-1] < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} is more than the {n - chosen[-1]} examples that are "
            f"left of {n} when {config.shares[-1]:.4g} of them are removed; updates could not be "
            "equal"
        )
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished width and seed, and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json`` and ``metrics/``: a line for each network.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    return run_ensembles(
        "capacity",
        config,
        out,
        data,
        cells(config),
        partial(_train, config, data),
        lines=1 + len(config.shares) * (len(NOISE) + 1),
        progress=progress,
    )


def _train(config: Config, data: Data, cell: Cell, tell: Tell) -> list[dict[str, Any]]:
    (width,) = (width for width in config.widths if cell_of(cell.seed, width) == cell)
    sets = list(_training_sets(config, data, cell.seed))
    results = train_members(
        config,
        data,
        [
            Member(
                build_network(config, data.split, cell.seed, width=width),
                train,
                cell.seed,
                config.learning_rate,
                config.weight_decay,
            )
            for _, train in sets
        ],
        # A removed example is no shorter training.
        updates_per_epoch=-(-len(data.train) // config.batch_size),
        evaluate_every=config.every,
        progress=tell,
    )
    lines = []
    for (values, train), epochs in zip(sets, results, strict=True):
        # The first, where several epochs are equally good.
        best = max(epochs, key=lambda epoch: epoch.validation_accuracy or 0.0)
        last = epochs[-1]
        lines.append(
            {"width": width}
            | values
            | {
                "train_size": len(train),
                "updates": last.updates,
                "best_epoch": best.epoch,
                "best_validation_accuracy": best.validation_accuracy,
                "validation_accuracy": last.validation_accuracy,
                "train_accuracy": last.train_accuracy,
                "loss": last.loss,
            }
        )
    return lines


def _training_sets(
    config: Config, data: Data, seed: int
) -> Iterator[tuple[dict[str, Any], Tensors]]:
    """What one network each is trained on, and what its line says of it."""
    yield {"noise": "none", "share": 0.0}, data.train
    for share in config.shares:
        noisy = {noise: corrupt(config, data, _condition(noise, share), seed) for noise in NOISE}
        for noise, train in noisy.items():
            yield {"noise": noise, "share": share}, train
        # The same examples are chosen for either kind of noise.
        clean = (~noisy[NOISE[0]].is_corrupted).nonzero()[:, 0]
        yield {"noise": REMOVED, "share": share}, data.train.subset(clean)


def _condition(noise: str, share: float) -> Condition:
    return Condition(f"random-{noise}", f"random {noise}", **{noise: share})
