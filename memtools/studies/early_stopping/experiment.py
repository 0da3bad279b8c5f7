"""Trains on random labels and takes down, after every epoch, all that a rule may look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from memtools import seeds
from memtools.data import Tensors
from memtools.gradients import input_gradient_norms
from memtools.guard import untouched
from memtools.inequality import gini
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.data import CHUNK, Data, predict
from memtools.studies.early_stopping.config import CONDITIONS, Config
from memtools.studies.folder import RunFolder
from memtools.studies.networks import EpochRecorder, run_networks
from memtools.studies.networks import prepare as prepare_network
from memtools.studies.probes import Probes
from memtools.training import EpochResult, Run

__all__ = ["Halves", "cells", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order."""
    return [Cell(condition, seed) for seed in config.seeds for condition in CONDITIONS]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_network(config)
    for_rules = len(data.validation) // 2
    if for_rules < config.few_labels:
        raise ValueError(
            f"few_labels must be at most the {for_rules} examples that are half of those held out, "
            f"got {config.few_labels}"
        )
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
        The run folder with ``config.json`` and ``metrics/``: a line for each epoch.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data

    def recorder(folder: RunFolder, cell: Cell, train: Tensors, tell: Tell) -> _Recorder:
        return _Recorder(folder, cell, tell, config, train, Halves.of(data.validation, cell.seed))

    return run_networks(
        "early-stopping",
        config,
        out,
        data,
        cells(config),
        recorder,
        lines=config.epochs,
        progress=progress,
    )


@dataclass(frozen=True)
class Halves:
    """The examples held out: those that rules choose by, and those that judge the choice."""

    validation: Tensors
    test: Tensors

    @classmethod
    def of(cls, held_out: Tensors, seed: int) -> "Halves":
        """Split them at random; of an odd number, the test has one more."""
        draw = seeds.generator(seed, "halves")
        order = torch.randperm(len(held_out), generator=draw)
        half = len(held_out) // 2
        return cls(held_out.subset(order[:half]), held_out.subset(order[half:]))


class _Recorder(EpochRecorder):
    """Lines with all curves; ``validation_accuracy`` is of the half that rules may look at."""

    def __init__(
        self,
        folder: RunFolder,
        cell: Cell,
        tell: Tell,
        config: Config,
        train: Tensors,
        halves: Halves,
    ) -> None:
        super().__init__(folder, cell, tell, range(1, config.epochs + 1))
        self.few = config.few_labels
        self.halves = halves
        self.probes = Probes(config, train, halves.validation, cell.seed)
        self.total = torch.zeros(len(train), dtype=torch.float64)

    def measure(self, run: Run, result: EpochResult) -> dict[str, Any]:
        """Accuracy on either half, how unequally examples pull, and how many are critical."""
        train: Tensors = run.train
        with untouched(run.model, evaluating=True):
            norms = input_gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        # Its own sum is the mean, but for a factor that the coefficient does not depend on.
        self.total += norms.double().cpu()
        weight = next(run.model.parameters())
        logits, test = (
            predict(run.model, half.inputs.to(weight)).cpu()
            for half in (self.halves.validation, self.halves.test)
        )
        targets = self.halves.validation.targets.cpu()
        right = logits.argmax(1) == targets
        return {
            "validation_loss": float(cross_entropy(logits.double(), targets)),
            "validation_accuracy": float(right.double().mean()),
            "few_accuracy": float(right[: self.few].double().mean()),
            "test_accuracy": float(
                (test.argmax(1) == self.halves.test.targets.cpu()).double().mean()
            ),
            "gini_instantaneous": float(gini(norms)),
            "gini_of_running_mean": float(gini(self.total)),
        } | self.probes.ratios(run.model, result.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The gradient norms so far."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the gradient norms of a run that was killed."""
        self.total = state["total"]
