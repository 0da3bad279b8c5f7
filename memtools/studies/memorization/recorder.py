"""What the memorization study measures while a network trains."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtools import seeds
from memtools.critical import critical_sample_ratio
from memtools.data import Tensors
from memtools.gradients import input_gradient_norms
from memtools.guard import untouched
from memtools.inequality import gini
from memtools.ledger import Ledger
from memtools.studies.cells import Cell, Tell
from memtools.studies.data import CHUNK, predict
from memtools.studies.folder import RunFolder, write_parquet
from memtools.training import Callback, EpochResult, Run

__all__ = ["NORM", "Recorder"]

NORM = "input_gradient_norm"
"""Column of the ledger with the L1 norm of the loss gradient with respect to the input."""


class Recorder(Callback):
    """Measures after every epoch: a line in ``metrics.jsonl``, a presentation in the ledger.

    Args:
        folder: The run folder.
        cell: The training.
        num_examples: Number of training examples.
        probes: Inputs by name in which critical samples are searched.
        radius: Half-width of their box.
        steps: Steps of the search.
        tell: Told how many epochs are newly done.
    """

    def __init__(
        self,
        folder: RunFolder,
        cell: Cell,
        num_examples: int,
        *,
        probes: dict[str, Tensor],
        radius: float,
        steps: int,
        tell: Tell,
    ) -> None:
        self.folder = folder
        self.cell = cell
        self.ledger = Ledger(num_examples)
        self.probes = probes
        self.radius = radius
        self.steps = steps
        self.tell = tell

    def on_start(self, run: Run) -> None:
        """Forget the lines of epochs that a kill undid."""
        weight = next(run.model.parameters())
        self.probes = {part: probe.to(weight) for part, probe in self.probes.items()}
        done = len(run.results)
        self.folder.drop_rows_from(
            lambda row: self.folder.is_of(row, **self.cell.values) and row["epoch"] > done
        )
        if self.folder.count_rows(**self.cell.values) < done:
            raise ValueError(
                f"{self.folder.path / 'metrics.jsonl'} lacks lines that were there when "
                f"{self.folder.path / 'checkpoints'} was written; remove that folder to train anew"
            )
        self.tell(done)

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        """Measure, and append what was measured."""
        train: Tensors = run.train
        logits = predict(run.model, train.inputs)
        with untouched(run.model, evaluating=True):
            norms = input_gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        self.ledger.update(
            torch.arange(len(train)), logits=logits, targets=train.targets, **{NORM: norms}
        )
        mean_norms = torch.from_numpy(self.ledger.history(NORM)).double().mean(1)
        right = logits.argmax(1) == train.targets
        self.folder.append(
            self.cell.values
            | asdict(result)
            | {
                "corrupted_accuracy": _share(right[train.is_corrupted]),
                "gini_of_running_mean": float(gini(mean_norms)),
                "gini_instantaneous": float(gini(norms)),
            }
            | {f"csr_{part}": self._csr(run.model, part, result.epoch) for part in self.probes}
        )
        self.tell(1)

    def _csr(self, model: nn.Module, part: str, epoch: int) -> float:
        ratio = critical_sample_ratio(
            model,
            self.probes[part],
            radius=self.radius,
            max_steps=self.steps,
            generator=seeds.generator(self.cell.seed, "csr", part, epoch),
            batch_size=CHUNK,
        )
        return float(ratio)

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
