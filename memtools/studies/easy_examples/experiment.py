"""Trains many networks on the same examples, and counts which get each of them right."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtools import seeds
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.data import Data, corrupt, predict
from memtools.studies.easy_examples.config import Config
from memtools.studies.easy_examples.spread import spread_of
from memtools.studies.ensembles import run_ensembles, train_members
from memtools.studies.folder import RunFolder, write_parquet
from memtools.studies.networks import build_network, prepare
from memtools.training import Member

__all__ = ["CONDITIONS", "SCORE", "cells", "prepare", "run"]

CONDITIONS = (REAL, RANDOM_LABELS, RANDOM_INPUTS)

SCORE = "share_right"
"""Column of ``examples/``: the share of networks that get an example right."""


def cells(config: Config) -> list[Cell]:
    """All sets of networks of the study, in order."""
    return [Cell(condition, seed) for seed in config.seeds for condition in CONDITIONS]


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished set of networks and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every set of networks.

    Returns:
        The run folder with ``config.json``, ``metrics/`` and ``examples/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    return run_ensembles(
        "easy-examples",
        config,
        out,
        data,
        cells(config),
        partial(_train, config, out, data),
        lines=1,
        results=("examples",),
        progress=progress,
    )


def _train(config: Config, out: Path, data: Data, cell: Cell, tell: Tell) -> list[dict[str, Any]]:
    train = corrupt(config, data, cell.condition, cell.seed)
    # The networks of all conditions are the same; so are the orders.
    own = [seeds.derive_seed(cell.seed, "network", number) for number in range(config.networks)]
    members = [
        Member(
            build_network(config, data.split, seed),
            train,
            seed,
            config.learning_rate,
            config.weight_decay,
        )
        for seed in own
    ]
    results = train_members(config, data, members, progress=tell)
    weight = next(members[0].model.parameters())
    inputs = train.inputs.to(weight)
    predictions = torch.stack([predict(m.model, inputs).argmax(1) for m in members]).cpu()
    share_right = (predictions == train.targets.cpu()).double().mean(0)
    write_parquet(
        out / "examples" / f"{cell.name}.parquet",
        {
            **{name: [value] * len(train) for name, value in cell.values.items()},
            "label": train.targets.cpu().numpy(),
            "clean_label": train.clean_targets.cpu().numpy(),
            "is_corrupted": train.is_corrupted.cpu().numpy(),
            "prediction": _most_frequent(predictions).numpy(),
            SCORE: share_right.numpy(),
        },
    )
    accuracies = [float(member[-1].validation_accuracy or 0) for member in results]
    spread = spread_of(share_right.numpy(), train.targets.cpu().numpy(), config.networks, cell.seed)
    return [{"validation_accuracy": sum(accuracies) / len(accuracies)} | spread]


def _most_frequent(predictions: Tensor) -> Tensor:
    """The class that most networks predict for each example."""
    return torch.stack([column.bincount().argmax() for column in predictions.T])
