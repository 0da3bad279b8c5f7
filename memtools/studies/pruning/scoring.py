"""Trains the network whose training scores the examples."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtools import seeds
from memtools.data import Tensors
from memtools.gradients import gradient_norms
from memtools.guard import untouched
from memtools.ledger import Ledger
from memtools.sensitivity import loss_sensitivity
from memtools.studies.cells import Cell
from memtools.studies.data import CHUNK, Data, predict
from memtools.studies.networks import build_network
from memtools.studies.pruning.config import Config
from memtools.studies.pruning.methods import GRAND, INPUT, METHODS, SENSITIVITY
from memtools.training import Callback, EpochResult, Run, TapeRecorder, Trainer

__all__ = ["scored"]


def scored(
    config: Config, data: Data, train: Tensors, cell: Cell
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of all examples from one training, and how it went.

    Weights and order are drawn from a seed of its own: scores know nothing of the networks that
    are compared. All scores but the sensitivity are means (CSL a sum, forgetting events a count)
    over the ends of the epochs; the sensitivity is a mean over the evaluated epochs.

    Args:
        config: All settings.
        data: The data of the study.
        train: The training set as networks get it.
        cell: What it is for.

    Returns:
        Columns of shape ``(n,)``, and what the line about the scoring network says.

    Raises:
        FloatingPointError: If the training, or the derivative through it, diverges.
    """
    seed = seeds.derive_seed(cell.seed, "scoring")
    model = build_network(config, data.split, seed)
    tape, history = TapeRecorder(), _History(len(train))
    trainer = Trainer(
        model,
        partial(torch.optim.SGD, lr=config.scoring_learning_rate),
        epochs=config.scoring_epochs,
        batch_size=config.batch_size,
        seed=seed,
        device=config.device,
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=[tape, history],
    )
    try:
        results = trainer.fit(train)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"the scoring network diverged ({cell.title}): {error}; lower scoring_learning_rate, "
            f"now {config.scoring_learning_rate}"
        ) from error
    assert tape.tape is not None
    at = [result.updates for result in results if result.epoch in set(config.evaluated())]
    norms = loss_sensitivity(tape.tape, (train.inputs, train.targets), at=at).double().cpu()
    _check(norms, config, cell)
    columns = history.ledger.scores()
    weight = next(model.parameters())
    prediction = predict(model, train.inputs.to(weight)).argmax(1)
    table = {
        "prediction": prediction.cpu().numpy(),
        **{column: columns[column] for _, column, _ in METHODS.values() if column != SENSITIVITY},
        SENSITIVITY: norms.mean(0).numpy(),
    }
    means = norms.mean(1)
    largest = float(means.max() / means.sum()) if means.sum() > 0 else 1.0
    return table, {
        "updates": results[-1].updates,
        "train_accuracy": results[-1].train_accuracy,
        "largest_time_share": largest,
    }


class _History(Callback):
    """A presentation of every example in a ledger after every epoch."""

    def __init__(self, num_examples: int) -> None:
        self.ledger = Ledger(num_examples)

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        """Take down losses, margins and gradients as they are now."""
        train = run.train
        logits = predict(run.model, train.inputs)
        with untouched(run.model, evaluating=True):
            norms = gradient_norms(run.model, train.inputs, train.targets, chunk_size=CHUNK)
        scores: dict[str, Any] = {INPUT: norms.inputs, GRAND: norms.parameters}
        self.ledger.update(np.arange(len(train)), logits=logits, targets=train.targets, **scores)


def _check(norms: Tensor, config: Config, cell: Cell) -> None:
    if not bool(torch.isfinite(norms).all()):
        raise FloatingPointError(
            f"the derivative through the scoring training diverged ({cell.title}), though the "
            f"training did not; lower scoring_learning_rate, now {config.scoring_learning_rate}"
        )
