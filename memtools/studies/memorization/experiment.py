"""Trains the networks of the memorization study, and goes on after a kill."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memtools import models, seeds
from memtools.batch import check_logits
from memtools.data import Split
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.data import Data, corrupt, predict, read
from memtools.studies.folder import RunFolder
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.config import Config
from memtools.studies.memorization.recorder import Recorder
from memtools.training import Callback, Trainer

__all__ = ["cells", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order."""
    return [Cell(condition, seed) for seed in config.seeds for condition in CONDITIONS]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = read(config, validation_size=config.validation_size)
    try:
        model = _build(config, data.split, seed=0)
    except RuntimeError as error:
        raise ValueError(
            f"width {config.width} with depth {config.depth} cannot be built: {error}"
        ) from error
    check_logits(predict(model, data.train.inputs[:1]))
    normalises = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    if normalises and (config.batch_size == 1 or len(data.train) % config.batch_size == 1):
        raise ValueError(
            f"batch_size {config.batch_size} makes a batch of one of the {len(data.train)} "
            f"examples, which the BatchNorm of {config.model} cannot normalise; choose another"
        )
    _trainer(config, model)
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished epoch and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json``, ``metrics.jsonl``, ``examples/`` and ``ledgers/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    folder = RunFolder.open(out, "memorization", config.as_json(), str(data.device))
    for name in _Files._fields:
        (out / name).mkdir(exist_ok=True)
    run_cells(
        folder,
        cells(config),
        partial(_train, folder, config, data),
        lines=config.epochs,
        results=lambda cell: _files(folder, cell)[1:],
        scratch=lambda cell: _files(folder, cell)[:1],
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    with suppress(OSError):  # somebody's own file in it
        (out / "checkpoints").rmdir()
    return folder


class _Files(NamedTuple):
    checkpoints: Path
    ledgers: Path
    examples: Path


def _files(folder: RunFolder, cell: Cell) -> _Files:
    return _Files(
        folder.path / "checkpoints" / f"{cell.name}.pt",
        folder.path / "ledgers" / f"{cell.name}.parquet",
        folder.path / "examples" / f"{cell.name}.parquet",
    )


def _train(folder: RunFolder, config: Config, data: Data, cell: Cell, tell: Tell) -> None:
    checkpoint, ledger, examples = _files(folder, cell)
    train = corrupt(config, data, cell.condition, cell.seed)
    model = _build(config, data.split, cell.seed)
    recorder = Recorder(
        folder,
        cell,
        len(train),
        probes={
            "train": _probe(train.inputs, config, "train"),
            "validation": _probe(data.validation.inputs, config, "validation"),
        },
        radius=config.radius,
        steps=config.csr_steps,
        tell=tell,
    )
    _trainer(config, model, cell.seed, [recorder], checkpoint).fit(train, data.validation)
    recorder.ledger.save(ledger)
    recorder.write_examples(examples, model, train)
    checkpoint.unlink()


def _probe(inputs: Tensor, config: Config, part: str) -> Tensor:
    order = torch.randperm(
        len(inputs), generator=seeds.generator(config.data_seed, "csr examples", part)
    )
    return inputs[order[: config.csr_examples]]


def _build(config: Config, split: Split, seed: int) -> nn.Module:
    settings: dict[str, Any] = {"width": config.width, "depth": config.depth}
    if config.dropout:
        if config.model == "tiny-mlp":
            raise ValueError(f"dropout must be 0 for tiny-mlp, got {config.dropout}")
        settings["dropout"] = config.dropout
    with seeds.seeded(seed, "weights"):
        return models.build(config.model, split.input_shape, len(split.class_names), **settings)


def _trainer(
    config: Config,
    model: nn.Module,
    seed: int = 0,
    callbacks: list[Callback] | None = None,
    checkpoint: Path | None = None,
) -> Trainer:
    return Trainer(
        model,
        partial(
            torch.optim.SGD,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        device=config.device,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=callbacks or [],
        checkpoint=checkpoint,
    )
