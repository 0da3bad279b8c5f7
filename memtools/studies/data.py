"""The data of a study, read once and with the noise of each training put in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memtools.data import Split, Tensors, in_memory, load, random_inputs, random_labels
from memtools.extras import require
from memtools.guard import untouched
from memtools.studies.conditions import Condition
from memtools.studies.config import Settings
from memtools.training import resolve_device

__all__ = ["CHUNK", "Data", "corrupt", "predict", "read"]

SMALLEST = 10
"""Training examples below which shares such as 20% are too coarse to mean anything."""

CHUNK = 1024


@dataclass(frozen=True)
class Data:
    """What a configuration needs, ready to be trained on.

    Attributes:
        split: The data set as it was read.
        train: Examples to train on, without noise.
        validation: Examples held out.
        device: Where networks are trained.
    """

    split: Split
    train: Tensors
    validation: Tensors
    device: torch.device


def read(config: Settings, *, validation_size: int | None) -> Data:
    """Load the data set of a configuration, before anything is written.

    Args:
        config: All settings.
        validation_size: Number of examples held out; ``None`` takes all.

    Returns:
        The data.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
        ModuleNotFoundError: If a package is missing that a study needs.
    """
    for module in ("jinja2", "matplotlib", "pyarrow", "sklearn"):
        require(module)
    device = resolve_device(config.device)
    split = load(
        config.dataset,
        data_dir=config.data_dir,
        download=config.download,
        train_size=config.train_size,
        validation_size=validation_size,
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
    return Data(split, in_memory(split.train), in_memory(split.validation), device)


def corrupt(config: Any, data: Data, condition: Condition | None, seed: int) -> Tensors:
    """The training set of one training, with the noise of its condition and the mask of it.

    Args:
        config: All settings (their type is a study's own).
        data: The data; they are not changed.
        condition: What is random; ``None`` is nothing.
        seed: Fixes the noise.

    Returns:
        The noisy training set.
    """
    noisy: Any = data.train
    if condition is None:
        return in_memory(noisy)
    if condition.labels:
        noisy = random_labels(
            noisy,
            condition.labels,
            mode=config.label_noise,
            seed=seed,
            num_classes=len(data.split.class_names),
        )
    if condition.inputs:
        noisy = random_inputs(
            noisy, condition.inputs, statistics=config.input_statistics, seed=seed
        )
    return in_memory(noisy)


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits of a whole set in eval mode, by chunks."""
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        return torch.cat([forward(chunk) for chunk in inputs.split(CHUNK)])
