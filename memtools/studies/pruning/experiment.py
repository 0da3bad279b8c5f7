"""Scores the examples, and trains a network on every part of them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memtools.data import Tensors
from memtools.extras import require
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.data import Data, corrupt
from memtools.studies.ensembles import train_members
from memtools.studies.folder import RunFolder, write_parquet
from memtools.studies.networks import build_network
from memtools.studies.networks import prepare as prepare_network
from memtools.studies.pruning.config import CONDITIONS, Config
from memtools.studies.pruning.methods import METHODS, hardness_ranks
from memtools.studies.pruning.scoring import scored
from memtools.studies.pruning.subsets import indices_of, subsets
from memtools.training import Member

__all__ = ["cells", "examples_of", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """One scoring and all trainings that depend on it, for each kind of data and seed."""
    return [Cell(condition, seed) for seed in config.seeds for condition in CONDITIONS]


def examples_of(folder: RunFolder, cell: Cell) -> Path:
    """Where the scores of the examples are."""
    return folder.path / "examples" / f"{cell.name}.parquet"


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_network(config)
    n, share = len(data.train), max(*config.shares, 1 - config.window_width)
    if round((1 - share) * n) < config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} is more than the {round((1 - share) * n)} examples "
            f"that are left of {n} when {share:.4g} of them are dropped; updates could not be equal"
        )
    if config.standardize and not float(data.train.inputs.std()) > 0:
        raise ValueError(
            f"standardize needs inputs that differ, those of {config.dataset} are all "
            f"{float(data.train.inputs.mean()):.3g}"
        )
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Score the examples and train on every part of them, or go on where a run was killed.

    A run that was killed goes on from the last finished condition and seed, and ends in the same
    files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json``, ``metrics/`` and ``examples/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training, or the derivative through it, diverges.
    """
    data = prepare(config) if data is None else data
    folder = RunFolder.open(out, "pruning", config.as_json(), str(data.device))
    (out / "examples").mkdir(exist_ok=True)
    run_cells(
        folder,
        cells(config),
        partial(_train, folder, config, data),
        lines=1 + sum(1 for _ in subsets(config)) + len(METHODS),
        results=lambda cell: [examples_of(folder, cell)],
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    return folder


def _train(folder: RunFolder, config: Config, data: Data, cell: Cell, tell: Tell) -> None:
    log = folder.log(cell.name)
    log.cut()
    noisy = corrupt(config, data, cell.condition, cell.seed)
    train = _as_trained_on(config, data, noisy)
    table, scoring = scored(config, data, train, cell)
    ranks = {method: hardness_ranks(table, method, cell.seed) for method in METHODS}
    lines = [
        {"kind": "scoring"} | scoring,
        *_retrained(config, data, train, ranks, cell, tell),
        *_detection(table, ranks, train.is_corrupted.cpu().numpy()),
    ]
    write_parquet(
        examples_of(folder, cell),
        {
            **{name: [value] * len(train) for name, value in cell.values.items()},
            "label": train.targets.cpu().numpy(),
            "clean_label": train.clean_targets.cpu().numpy(),
            "is_corrupted": train.is_corrupted.cpu().numpy(),
            **table,
        },
    )
    # All lines at once, after the file: there are all of them only where everything is there.
    log.append(*(cell.values | line for line in lines))


def _as_trained_on(config: Config, data: Data, examples: Tensors) -> Tensors:
    """The examples with the inputs that networks get, which depend on the training set alone."""
    if not config.standardize:
        return examples
    inputs = (examples.inputs - data.train.inputs.mean()) / data.train.inputs.std()
    return Tensors(inputs, examples.targets, examples.is_corrupted, examples.clean_targets)


def _retrained(
    config: Config, data: Data, train: Tensors, ranks: Mapping[str, Tensor], cell: Cell, tell: Tell
) -> Iterator[dict[str, Any]]:
    """Train on every part of the training set, from the same weights; a line for each."""
    parts = {s: indices_of(s, ranks, len(train), cell.seed) for s in subsets(config)}
    members = [
        Member(
            build_network(config, data.split, cell.seed),
            train.subset(kept),
            cell.seed,
            config.learning_rate,
            config.weight_decay,
        )
        for kept in parts.values()
    ]
    results = train_members(
        config,
        replace(data, validation=_as_trained_on(config, data, data.validation)),
        members,
        updates_per_epoch=-(-len(train) // config.batch_size),
        evaluate_every=config.epochs,
        progress=tell,
    )
    corrupted = int(train.is_corrupted.sum())
    for (subset, kept), member, (*_, last) in zip(parts.items(), members, results, strict=True):
        dropped = len(train) - len(kept)
        of_them = corrupted - int(member.train.is_corrupted.sum())
        yield subset.values | {
            "train_size": len(kept),
            "updates": last.updates,
            "loss": last.loss,
            "train_accuracy": last.train_accuracy,
            "validation_accuracy": last.validation_accuracy,
            "corrupted_dropped": of_them / dropped if dropped else None,
        }


def _detection(
    table: Mapping[str, Any], ranks: Mapping[str, Tensor], is_corrupted: NDArray[np.bool_]
) -> Iterator[dict[str, Any]]:
    """How well each score tells corrupted examples from the others."""
    number = int(is_corrupted.sum())
    for method, (_, column, sign) in METHODS.items():
        area = precision = None
        if number:
            # Only the order counts; equal scores stay equal, and count half.
            values = np.unique(sign * np.asarray(table[column]), return_inverse=True)[1]
            area = float(require("sklearn.metrics").roc_auc_score(is_corrupted, values))
            hardest = ranks[method].numpy() >= len(values) - number
            precision = float(is_corrupted[hardest].mean())
        yield {"kind": "detection", "score": method, "auroc": area, "precision": precision}
