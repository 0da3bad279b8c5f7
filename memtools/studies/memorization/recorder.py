"""What the memorization study measures while a network trains."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtools.data import Tensors
from memtools.gradients import input_gradient_norms
from memtools.guard import untouched
from memtools.inequality import gini
from memtools.ledger import Ledger
from memtools.studies.cells import Cell, Tell
from memtools.studies.data import CHUNK, predict
from memtools.studies.folder import RunFolder, write_parquet
from memtools.studies.networks import EpochRecorder
from memtools.studies.probes import Probes
from memtools.training import EpochResult, Run

__all__ = ["NORM", "Recorder"]

NORM = "input_gradient_norm"
"""Column of the ledger with the L1 norm of the loss gradient with respect to the input."""


class Recorder(EpochRecorder):
    """Measures after every epoch: a line in the log, a presentation in the ledger.

    Args:
        folder: The run folder.
        cell: The training.
        tell: Told how many epochs are newly done.
        epochs: Number of epochs.
        num_examples: Number of training examples.
        probes: Examples around which critical samples are searched.
    """

    def __init__(
        self,
        folder: RunFolder,
        cell: Cell,
        tell: Tell,
        epochs: int,
        *,
        num_examples: int,
        probes: Probes,
    ) -> None:
        super().__init__(folder, cell, tell, range(1, epochs + 1))
        self.ledger = Ledger(num_examples)
        self.probes = probes

    def measure(self, run: Run, result: EpochResult) -> dict[str, Any]:
        """How unequally the examples pull, and how many are critical."""
        train: Tensors = run.train
        logits = predict(run.model, train.inputs)
        with untouched(run.model, evaluating=True):
            norms = input_gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        scores: dict[str, Any] = {NORM: norms}
        self.ledger.update(torch.arange(len(train)), logits=logits, targets=train.targets, **scores)
        mean_norms = torch.from_numpy(self.ledger.history(NORM)).double().mean(1)
        right = logits.argmax(1) == train.targets
        return {
            "corrupted_accuracy": _share(right[train.is_corrupted]),
            "gini_of_running_mean": float(gini(mean_norms)),
            "gini_instantaneous": float(gini(norms)),
        } | self.probes.ratios(run.model, result.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The ledger so far."""
        return self.ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the ledger of a run that was killed."""
        self.ledger.load_state_dict(state)

    def write_examples(self, path: Path, model: nn.Module, train: Tensors) -> None:
        """Write a Parquet file of one row per training example: labels, noise, all scores."""
        weight = next(model.parameters())
        table = {
            **{name: [value] * len(train) for name, value in self.cell.values.items()},
            "label": train.targets.cpu().numpy(),
            "clean_label": train.clean_targets.cpu().numpy(),
            "is_corrupted": train.is_corrupted.cpu().numpy(),
            "prediction": predict(model, train.inputs.to(weight)).argmax(1).cpu().numpy(),
            **self.ledger.scores(),
        }
        write_parquet(path, table)


def _share(values: Tensor) -> float | None:
    return float(values.float().mean()) if len(values) else None
