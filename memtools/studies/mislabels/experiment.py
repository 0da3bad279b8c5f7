"""Trains on wrong labels and keeps a ledger of every example."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from memtools import seeds
from memtools.data import Tensors
from memtools.extras import require
from memtools.gradients import input_gradient_norms
from memtools.guard import untouched
from memtools.ledger import Ledger
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.conditions import Condition
from memtools.studies.data import CHUNK, Data, predict
from memtools.studies.folder import RunFolder, write_parquet
from memtools.studies.mislabels.config import Config
from memtools.studies.mislabels.methods import EACH_EPOCH, NORM, auroc
from memtools.studies.networks import EpochRecorder, build_network, run_networks, trainer_for
from memtools.studies.networks import prepare as prepare_network
from memtools.training import EpochResult, Run

__all__ = ["cells", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order."""
    condition = Condition("wrong-labels", f"{config.noise:.0%} wrong labels", labels=config.noise)
    return [Cell(condition, seed) for seed in config.seeds]


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_network(config)
    wrong = round(config.noise * len(data.train))
    if not 0 < wrong < len(data.train):
        raise ValueError(
            f"noise {config.noise} of {len(data.train)} examples makes {wrong} labels wrong; "
            "there must be right and wrong ones"
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
        The run folder with ``config.json``, ``metrics/``, ``examples/`` and ``ledgers/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data

    def recorder(folder: RunFolder, cell: Cell, train: Tensors, tell: Tell) -> _Recorder:
        return _Recorder(folder, cell, tell, range(1, config.epochs + 1), len(train))

    def finish(
        folder: RunFolder, cell: Cell, recorder: _Recorder, model: nn.Module, train: Tensors
    ) -> None:
        recorder.ledger.save(folder.path / "ledgers" / f"{cell.name}.parquet")
        held_out = _held_out(config, data, train, cell.seed)
        columns = {
            **{name: [value] * len(train) for name, value in cell.values.items()},
            "label": train.targets.cpu().numpy(),
            "clean_label": train.clean_targets.cpu().numpy(),
            **recorder.ledger.scores(),
            "last_loss": recorder.ledger.history("loss")[:, -1],
            "held_out_confidence": held_out.gather(1, train.targets.cpu()[:, None])[:, 0].numpy(),
            **_confident_learning(train.targets.cpu().numpy(), held_out.numpy()),
        }
        write_parquet(folder.path / "examples" / f"{cell.name}.parquet", columns)

    return run_networks(
        "mislabels",
        config,
        out,
        data,
        cells(config),
        recorder,
        lines=config.epochs,
        results=("ledgers", "examples"),
        finish=finish,
        progress=progress,
    )


class _Recorder(EpochRecorder):
    """A presentation in the ledger after every epoch, and how well it tells wrong from right."""

    def __init__(
        self, folder: RunFolder, cell: Cell, tell: Tell, epochs: range, num_examples: int
    ) -> None:
        super().__init__(folder, cell, tell, epochs)
        self.ledger = Ledger(num_examples)

    def measure(self, run: Run, result: EpochResult) -> dict[str, Any]:
        """Areas under the ROC curve by what is known up to now."""
        train: Tensors = run.train
        logits = predict(run.model, train.inputs)
        with untouched(run.model, evaluating=True):
            norms = input_gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        scores: dict[str, Any] = {NORM: norms}
        self.ledger.update(torch.arange(len(train)), logits=logits, targets=train.targets, **scores)
        is_wrong = (train.targets != train.clean_targets).cpu().numpy()
        table: dict[str, Any] = {**self.ledger.scores()}
        table["last_loss"] = self.ledger.history("loss")[:, -1]
        return {f"auroc_{method}": auroc(table, method, is_wrong) for method in EACH_EPOCH}

    def state_dict(self) -> dict[str, Any]:
        """The ledger so far."""
        return self.ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the ledger of a run that was killed."""
        self.ledger.load_state_dict(state)


def _held_out(config: Config, data: Data, train: Tensors, seed: int) -> torch.Tensor:
    """Probabilities of all classes by networks that were not trained on the example, (n, C)."""
    order = torch.randperm(len(train), generator=seeds.generator(seed, "folds"))
    found = torch.empty(len(train), len(data.split.class_names), dtype=torch.float64)
    for fold, left_out in enumerate(order.tensor_split(config.folds)):
        others = torch.ones(len(train), dtype=torch.bool).index_fill(0, left_out, value=False)
        model = build_network(config, data.split, seeds.derive_seed(seed, "fold", fold))
        part = train.subset(others.nonzero()[:, 0])
        trainer_for(config, model, seed, epochs=config.fold_epochs).fit(part)
        inputs = train.inputs[left_out].to(next(model.parameters()))
        found[left_out] = predict(model, inputs).double().softmax(1).cpu()
    return found


def _confident_learning(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> dict[str, Any]:
    """What cleanlab makes of the same probabilities; empty where it is not installed."""
    if find_spec("cleanlab") is None:
        return {}
    rank, filters = require("cleanlab.rank", "peers"), require("cleanlab.filter", "peers")
    quality = rank.get_label_quality_scores(
        labels, probabilities, method="self_confidence", adjust_pred_probs=True
    )
    issues = filters.find_label_issues(labels, probabilities, n_jobs=1)
    return {"label_quality": quality, "is_label_issue": issues}
