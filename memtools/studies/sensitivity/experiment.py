"""Trains the networks of the sensitivity study, and differentiates through each training."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtools import models, seeds
from memtools.data import Tensors
from memtools.files import replace_atomically
from memtools.inequality import gini
from memtools.sensitivity import TrainingTape, loss_sensitivity, per_class_loss_sensitivity
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.data import Data, corrupt, predict, read
from memtools.studies.folder import RunFolder, write_parquet
from memtools.studies.sensitivity.config import SCORE, Config
from memtools.training import EpochResult, TapeRecorder, Trainer

__all__ = ["CONDITIONS", "Files", "cells", "files_of", "prepare", "run", "train_on"]

CONDITIONS = {
    "classes": (REAL, RANDOM_LABELS, RANDOM_INPUTS),
    # Labels are replaced there, so that random ones would make no difference.
    "own-class": (replace(REAL, title="real inputs"), RANDOM_INPUTS),
}
"""What is trained on in each task: the usual classes, and every example as a class of its own."""


class Files(NamedTuple):
    """Results of one training; the folders they are in have the names of the fields."""

    examples: Path
    matrices: Path | None


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order."""
    return [
        Cell(condition, seed, task)
        for seed in config.seeds
        for task, conditions in CONDITIONS.items()
        for condition in conditions
    ]


def files_of(folder: RunFolder, cell: Cell) -> Files:
    """Where the results of a training are; only the usual classes have a matrix."""
    return Files(
        folder.path / "examples" / f"{cell.name}.parquet",
        folder.path / "matrices" / f"{cell.name}.csv" if cell.task == "classes" else None,
    )


def prepare(config: Config) -> Data:
    """Load the data, scale them to the size of the paper's network, and try out every setting.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = read(config, validation_size=None if config.dataset == "folder" else 1)
    inputs = _scale(data.train.inputs)
    shape = tuple(inputs.shape[1:])
    data = replace(
        data,
        split=replace(data.split, input_shape=shape),
        train=Tensors(inputs, data.train.targets),
    )
    for task in CONDITIONS:
        try:
            _trainer(config, data, Cell(REAL, 0, task))
        except RuntimeError as error:
            raise ValueError(
                f"width {config.width} with depth {config.depth} cannot be built: {error}"
            ) from error
    if config.standardize and not float(inputs.std()) > 0:
        raise ValueError(
            f"standardize needs inputs that differ, those of {config.dataset} are all "
            f"{float(inputs.mean()):.3g}"
        )
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished training and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every training.

    Returns:
        The run folder with ``config.json``, ``metrics/``, ``examples/`` and ``matrices/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training, or the derivative through it, diverges.
    """
    data = prepare(config) if data is None else data
    folder = RunFolder.open(out, "sensitivity", config.as_json(), str(data.device))
    for name in Files._fields:
        (out / name).mkdir(exist_ok=True)
    run_cells(
        folder,
        cells(config),
        partial(_train, folder, config, data),
        lines=len(config.evaluated()),
        results=lambda cell: [path for path in files_of(folder, cell) if path],
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    return folder


def train_on(config: Config, data: Data, cell: Cell) -> Tensors:
    """What one training is given: noise put in, standardised, targets of the task."""
    train = corrupt(config, data, cell.condition, cell.seed)
    inputs = train.inputs
    if config.standardize:
        # The same for every condition: random inputs have the mean and variance of the data.
        inputs = (inputs - data.train.inputs.mean()) / data.train.inputs.std()
    targets = torch.arange(len(train)) if cell.task == "own-class" else train.targets
    return Tensors(inputs, targets, train.is_corrupted, train.clean_targets)


def _train(folder: RunFolder, config: Config, data: Data, cell: Cell, tell: Tell) -> None:
    log = folder.log(cell.name)
    log.cut()
    train = train_on(config, data, cell)
    trainer, recorder = _trainer(config, data, cell)
    results = [result for result in trainer.fit(train) if result.epoch in set(config.evaluated())]
    assert recorder.tape is not None
    at = [result.updates for result in results]
    pairs = (train.inputs, train.targets)
    norms = _finite(loss_sensitivity(recorder.tape, pairs, at=at), cell)
    running = norms.cumsum(0) / torch.arange(1, len(at) + 1)[:, None]
    files = files_of(folder, cell)
    if files.matrices:
        _write_matrix(files.matrices, recorder.tape, pairs, at, len(data.split.class_names))
    weight = next(trainer.model.parameters())
    prediction = predict(trainer.model, train.inputs.to(weight)).argmax(1)
    write_parquet(
        files.examples,
        {
            **{name: [value] * len(train) for name, value in cell.values.items()},
            "label": train.targets.numpy(),
            "clean_label": train.clean_targets.numpy(),
            "is_corrupted": train.is_corrupted.numpy(),
            "prediction": prediction.cpu().numpy(),
            SCORE: running[-1].numpy(),
        },
    )
    # All lines at once, after the files: there are all of them only where everything is there.
    log.append(*_lines(cell, results, norms, running))
    tell(config.epochs)


def _lines(
    cell: Cell, results: list[EpochResult], norms: Tensor, running: Tensor
) -> list[dict[str, Any]]:
    columns = zip(
        results, gini(running).tolist(), gini(norms).tolist(), norms.mean(1).tolist(), strict=True
    )
    return [
        cell.values
        | {
            "epoch": result.epoch,
            "updates": result.updates,
            "loss": result.loss,
            "train_accuracy": result.train_accuracy,
            "gini_of_running_mean": of_mean,
            "gini_instantaneous": instantaneous,
            "mean_sensitivity": mean,
        }
        for result, of_mean, instantaneous, mean in columns
    ]


def _write_matrix(
    path: Path, tape: TrainingTape, pairs: Any, at: list[int], num_classes: int
) -> None:
    matrix = per_class_loss_sensitivity(tape, pairs, at=at, num_classes=num_classes)
    with replace_atomically(path) as temporary:
        np.savetxt(temporary, matrix.cpu().numpy(), fmt="%.9g", delimiter=",")


def _finite(norms: Tensor, cell: Cell) -> Tensor:
    """Sensitivities in float64 on the CPU."""
    if not bool(torch.isfinite(norms).all()):
        raise FloatingPointError(
            f"the derivative through the training diverged ({cell.title}), though the training "
            "did not; lower the learning rate"
        )
    return norms.double().cpu()


def _scale(inputs: Tensor) -> Tensor:
    """Images of the side that the paper's network takes: pooled, or scaled up between pixels."""
    side = models.TinyMLP.SIDE
    height, width = inputs.shape[-2:]
    inputs = F.adaptive_avg_pool2d(inputs, (min(side, height), min(side, width)))
    return F.interpolate(inputs, (side, side), mode="bilinear")


def _trainer(config: Config, data: Data, cell: Cell) -> tuple[Trainer, TapeRecorder]:
    own_class = cell.task == "own-class"
    outputs = len(data.train) if own_class else len(data.split.class_names)
    rate = config.own_class_learning_rate if own_class else config.learning_rate
    with seeds.seeded(cell.seed, "weights"):
        model: nn.Module = models.TinyMLP(
            data.split.input_shape, outputs, width=config.width, depth=config.depth
        )
    recorder = TapeRecorder()
    return (
        Trainer(
            model,
            partial(torch.optim.SGD, lr=rate),
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=cell.seed,
            device=config.device,
            precision=config.precision,  # type: ignore[arg-type]
            callbacks=[recorder],
        ),
        recorder,
    )
