"""Trains the networks of the memorization study, and goes on after a kill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memtools import models, seeds
from memtools.batch import check_logits
from memtools.data import Split, Tensors, in_memory, load
from memtools.extras import require
from memtools.studies.folder import RunFolder
from memtools.studies.memorization.conditions import CONDITIONS, Condition
from memtools.studies.memorization.config import Config
from memtools.studies.memorization.recorder import Recorder, predict
from memtools.training import Callback, Trainer, resolve_device

__all__ = ["Data", "Progress", "cells", "corrupt", "prepare", "run"]


SMALLEST = 10
"""Training examples below which shares such as 20% are too coarse to mean anything."""

Progress = Callable[[str, int], None]
"""Called with a line on what is going on and the number of epochs just finished."""


@dataclass(frozen=True)
class Data:
    """What a configuration needs, ready to be trained on."""

    split: Split
    train: Tensors
    validation: Tensors
    device: torch.device


def cells(config: Config) -> list[tuple[int, Condition]]:
    """All trainings of the study, in order."""
    return [(seed, condition) for seed in config.seeds for condition in CONDITIONS]


def corrupt(config: Config, data: Data, condition: Condition, seed: int) -> Tensors:
    """The training set of one training, noise included."""
    return condition.apply(
        data.train,
        num_classes=len(data.split.class_names),
        label_noise=config.label_noise,
        input_statistics=config.input_statistics,
        seed=seed,
    )


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    for module in ("jinja2", "matplotlib", "pyarrow", "sklearn"):
        require(module)
    device = resolve_device(config.device)
    split = load(
        config.dataset,
        data_dir=config.data_dir,
        download=config.download,
        train_size=config.train_size,
        validation_size=config.validation_size,
        image_size=config.image_size,
        seed=config.data_seed,
    )
    if len(split.train) < SMALLEST or len(split.validation) < 1:
        raise ValueError(
            f"dataset {config.dataset} has {len(split.train)} training and {len(split.validation)} "
            f"validation examples here; the study needs at least {SMALLEST} and 1"
        )
    if len(split.class_names) < 2:
        raise ValueError(
            f"dataset {config.dataset} has one class here, {', '.join(split.class_names)}; "
            "the study needs at least two"
        )
    data = Data(split, in_memory(split.train), in_memory(split.validation), device)
    try:
        model = _build(config, split, seed=0)
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
    settings = {f.name: _as_json(getattr(config, f.name)) for f in fields(config)}
    folder = RunFolder.open(out, "memorization", settings, str(data.device))
    for name in ("checkpoints", "examples", "ledgers"):
        (out / name).mkdir(exist_ok=True)
    tell = progress or (lambda line, epochs: None)
    with folder.locked(), _threads(config.threads):
        unfinished = _unfinished(folder, config)
        for seed, condition in cells(config):
            title = f"{condition.title}, seed {seed}"
            if (seed, condition) in unfinished:
                tell(title, 0)
                _train(folder, config, data, seed, condition, partial(tell, title))
            else:
                tell(title, config.epochs)
    with suppress(OSError):  # somebody's own file in it
        (out / "checkpoints").rmdir()
    return folder


def _unfinished(folder: RunFolder, config: Config) -> list[tuple[int, Condition]]:
    """The first training that is not finished, and all after it.

    Lines of ``metrics.jsonl`` are in the order of the trainings, so what comes after one that has
    to be done again cannot stay either.
    """
    folder.drop_rows_from(lambda row: False)
    todo = cells(config)
    while todo:
        seed, condition = todo[0]
        rows = folder.count_rows(condition=condition.key, seed=seed)
        files = _files(folder, seed, condition)
        if rows != config.epochs or not (files.examples.exists() and files.ledger.exists()):
            break
        files.checkpoint.unlink(missing_ok=True)
        todo = todo[1:]
    for seed, condition in todo[1:]:
        for file in _files(folder, seed, condition):
            file.unlink(missing_ok=True)
    return todo


class _Files(NamedTuple):
    checkpoint: Path
    ledger: Path
    examples: Path


def _files(folder: RunFolder, seed: int, condition: Condition) -> _Files:
    name = f"{condition.key}-seed{seed}"
    return _Files(
        folder.path / "checkpoints" / f"{name}.pt",
        folder.path / "ledgers" / f"{name}.parquet",
        folder.path / "examples" / f"{name}.parquet",
    )


def _train(
    folder: RunFolder,
    config: Config,
    data: Data,
    seed: int,
    condition: Condition,
    tell: Callable[[int], None],
) -> None:
    files = _files(folder, seed, condition)
    train = corrupt(config, data, condition, seed)
    model = _build(config, data.split, seed)
    recorder = Recorder(
        folder,
        condition.key,
        seed,
        len(train),
        probes={
            "train": _probe(train.inputs, config, "train"),
            "validation": _probe(data.validation.inputs, config, "validation"),
        },
        radius=config.radius,
        steps=config.csr_steps,
        tell=tell,
    )
    _trainer(config, model, seed, [recorder], files.checkpoint).fit(train, data.validation)
    recorder.ledger.save(files.ledger)
    recorder.write_examples(files.examples, model, train)
    files.checkpoint.unlink()


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


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
