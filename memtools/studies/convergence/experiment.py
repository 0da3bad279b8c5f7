"""Trains networks until they have all their examples right."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memtools import seeds
from memtools.data import Tensors
from memtools.studies import networks
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL, Condition
from memtools.studies.convergence.config import Config
from memtools.studies.data import Data, corrupt
from memtools.studies.ensembles import run_ensembles, train_members
from memtools.studies.folder import RunFolder
from memtools.studies.networks import build_network
from memtools.training import Member

__all__ = ["CONDITIONS", "MIXED", "cells", "prepare", "run", "training_set"]

MIXED = Condition("random-inputs-50", "half the inputs random", inputs=0.5)

CONDITIONS = (REAL, RANDOM_LABELS, RANDOM_INPUTS, MIXED)


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order; one does all kinds of data."""
    return [
        Cell(None, seed, f"{size} examples width {width}")
        for seed in config.seeds
        for size, width in config.points()
    ]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Args:
        config: All settings.

    Returns:
        The data.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = networks.prepare(config, config.widths)
    if len(data.train) < config.sizes[-1]:
        raise ValueError(
            f"sizes must be at most {len(data.train)}, the examples of dataset {config.dataset} "
            f"there are, got {config.sizes[-1]}"
        )
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished cell and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json`` and ``metrics/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    points = dict(zip(cells(config), config.points() * len(config.seeds), strict=True))
    return run_ensembles(
        "convergence",
        config,
        out,
        data,
        list(points),
        partial(_train, config, data, points),
        lines=len(CONDITIONS),
        progress=progress,
    )


def training_set(data: Data, size: int, seed: int) -> Tensors:
    """The examples of a seed, without noise; the larger set contains the smaller."""
    order = torch.randperm(len(data.train), generator=seeds.generator(seed, "training set"))
    drawn = order[:size]
    return Tensors(data.train.inputs[drawn], data.train.targets[drawn])


def _train(
    config: Config, data: Data, points: dict[Cell, tuple[int, int]], cell: Cell, tell: Tell
) -> list[dict[str, Any]]:
    size, width = points[cell]
    drawn = replace(data, train=training_set(data, size, cell.seed))
    # The networks of all kinds of data are the same; so are the orders.
    members = [
        Member(
            build_network(config, data.split, cell.seed, width=width),
            corrupt(config, drawn, condition, cell.seed),
            cell.seed,
            config.learning_rate,
            config.weight_decay,
        )
        for condition in CONDITIONS
    ]
    left = config.epochs

    def count(epochs: int) -> None:
        nonlocal left
        left -= epochs
        tell(epochs)

    results = train_members(config, data, members, stop_at_train_accuracy=1.0, progress=count)
    tell(left)  # those that nobody needed
    last = [of_member[-1] for of_member in results]
    return [
        {
            "trained_on": condition.key,
            "size": size,
            "width": width,
            "epochs": result.epoch,
            "updates": result.updates,
            "is_censored": result.train_accuracy < 1,
            "train_accuracy": result.train_accuracy,
            "validation_accuracy": result.validation_accuracy,
        }
        for condition, result in zip(CONDITIONS, last, strict=True)
    ]
