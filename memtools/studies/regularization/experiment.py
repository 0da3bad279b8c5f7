"""Trains on real and on random labels, under every regulariser at every strength."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.conditions import RANDOM_LABELS, REAL
from memtools.studies.data import Data, corrupt
from memtools.studies.ensembles import run_ensembles, train_members
from memtools.studies.folder import RunFolder
from memtools.studies.networks import build_network
from memtools.studies.networks import prepare as prepare_network
from memtools.studies.regularization.adversarial import Adversary, train_adversarially
from memtools.studies.regularization.config import Config
from memtools.studies.regularization.regularizers import (
    ADVERSARIAL,
    INPUT_NOISE,
    NONE,
    REGULARIZERS,
    WEIGHT_DECAY,
)
from memtools.training import EpochResult, Member

__all__ = ["LABELS", "cells", "prepare", "run"]

LABELS = {"real": REAL, "random": RANDOM_LABELS}
"""What is trained on, by its name in the lines."""


def cells(config: Config) -> list[Cell]:
    """All strengths of a regulariser, for each of them and each seed, the longest first."""
    tasks = (ADVERSARIAL, *(key for key in REGULARIZERS if key != ADVERSARIAL), NONE)
    return [Cell(None, seed, task) for task in tasks for seed in config.seeds]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_network(config)
    if config.input_noise_units == "std" and not float(data.train.inputs.std()) > 0:
        raise ValueError(
            f"input_noise_units must be inputs, got std, as those of {config.dataset} are all "
            f"{float(data.train.inputs.mean()):.3g}"
        )
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished regulariser and seed, and ends in the same
    files.

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

    def train(cell: Cell, tell: Tell) -> Sequence[dict[str, Any]]:
        assert cell.task is not None
        kinds = [(s, labels) for s in config.strengths(cell.task) for labels in LABELS]
        noisy = {labels: corrupt(config, data, LABELS[labels], cell.seed) for labels in LABELS}
        members = []
        for strength, labels in kinds:
            fields = _fields(config, data, cell.task, strength)
            decay = strength if cell.task == WEIGHT_DECAY else 0.0
            model = build_network(config, data.split, cell.seed, **fields)
            members.append(Member(model, noisy[labels], cell.seed, config.learning_rate, decay))
        results = _train(config, data, cell.task, members, tell)
        return [
            {
                "strength": strength,
                "labels": labels,
                "epoch": last.epoch,
                "updates": last.updates,
                "loss": last.loss,
                "train_accuracy": last.train_accuracy,
                "validation_accuracy": last.validation_accuracy,
            }
            for (strength, labels), last in zip(kinds, results, strict=True)
        ]

    return run_ensembles(
        "regularization",
        config,
        out,
        data,
        cells(config),
        train,
        lines=lambda cell: len(LABELS) * len(config.strengths(cell.task or NONE)),
        progress=progress,
    )


def _fields(config: Config, data: Data, task: str, strength: float) -> dict[str, Any]:
    """Fields of the model for a strength."""
    field = None if task == NONE else REGULARIZERS[task].field
    if field is None or not strength:
        return {}
    in_std = task == INPUT_NOISE and config.input_noise_units == "std"
    return {field: strength * float(data.train.inputs.std()) if in_std else strength}


def _train(
    config: Config, data: Data, task: str, members: Sequence[Member], tell: Tell
) -> list[EpochResult]:
    """What the last epoch of each came to."""
    if task != ADVERSARIAL:
        results = train_members(config, data, members, evaluate_every=config.epochs, progress=tell)
        return [last for (*_, last) in results]
    adversary = Adversary(
        config.adversarial_share,
        config.adversarial_radius,
        config.adversarial_steps,
        config.adversarial_every,
    )
    return train_adversarially(
        members,
        adversary,
        epochs=config.epochs,
        batch_size=config.batch_size,
        momentum=config.momentum,
        validation=data.validation,
        device=config.device,
        precision=config.precision,
        progress=tell,
    )
