"""The jobs that are killed: each begins in a folder, or goes on with what it finds there."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import memtools
from memtools import cli, models, seeds
from memtools.data import Tensors
from memtools.scoring import score
from memtools.studies import capacity
from memtools.training import Callback, EpochResult, Member, Run, Trainer, train_ensemble
from memtools.training.checkpoint import save_checkpoint

__all__ = ["JOBS", "Job"]

for _name in (
    "jinja2", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "pyarrow.parquet", "rich.progress", "sklearn.datasets", "sklearn.metrics", "torch._dynamo",
    "torchvision.transforms.functional",
):  # fmt: skip
    importlib.import_module(_name)  # once, and not in every process that is forked

N, CLASSES = 96, 4
STUDY = (
    "--train-size 40 --validation-size 20 --epochs 3 --width 4 --csr-examples 8 --csr-steps 2 "
    "--seeds 0 --resume"
)


@dataclass(frozen=True)
class Job:
    """Something that a kill may interrupt.

    Attributes:
        what: What it is, for people.
        work: Begins it in a folder, or goes on with it.
        processes: So many share it.
    """

    what: str
    work: Callable[[Path], object]
    processes: int = 1


def study(folder: Path) -> None:
    """The memorization study as the command runs it, from its trainings to its page."""
    if cli.main(["study", "memorization", *STUDY.split(), "--out", str(folder)]):
        raise RuntimeError("the command failed")


def sweep(folder: Path) -> None:
    """A process's share of the trainings of the capacity study."""
    config = capacity.Config.suited(
        train_size=60, validation_size=20, epochs=3, batch_size=16, widths=(4, 8, 16, 32),
        seeds=(0, 1), shares=(0.2, 0.5),
    )  # fmt: skip
    capacity.run(config, folder)


def scoring(folder: Path) -> None:
    """Scores of a data set in chunks of four."""
    score(network(0), data(), folder, batch_size=2, chunk_size=4)


def ledger(folder: Path) -> None:
    """A training that adds every batch to a ledger in a folder, with a checkpoint an epoch."""
    model = network(0)
    trainer = Trainer(
        model,
        epochs=6,
        batch_size=8,
        device="cpu",
        callbacks=[_Recorder(folder / "ledger")],
        checkpoint=folder / "training.pt",
    )
    trainer.fit(data())
    save_checkpoint(folder / "weights.pt", model.state_dict())


def ensemble(folder: Path) -> None:
    """Networks that are trained together, with a checkpoint whenever that costs little."""
    members = [Member(network(seed), data(), seed, 0.1) for seed in range(3)]
    checkpoint = folder / "ensemble.pt"
    results = train_ensemble(
        members, epochs=60, batch_size=16, engine="fused", device="cpu", checkpoint=checkpoint
    )
    save_checkpoint(
        folder / "weights.pt",
        {
            "weights": [member.model.state_dict() for member in members],
            "losses": [[result.loss for result in own] for own in results],
        },
    )
    checkpoint.unlink(missing_ok=True)  # its tensors are the same, packed in another way


class _Recorder(Callback):
    """Adds every batch to the ledger; the checkpoint says up to where it belongs to the state."""

    def __init__(self, folder: Path) -> None:
        self.ledger = memtools.Ledger(N, folder, resume=True)

    def on_start(self, run: Run) -> None:
        if not run.results and self.ledger.presentations.any():
            self.ledger.load_state_dict({"step": torch.tensor(-1)})

    def before_step(self, run: Run, batch: Any) -> None:
        with torch.no_grad():
            logits = run.model(batch.inputs)
        late = {"late": batch.targets} if len(run.results) >= 2 else {}
        self.ledger.update(batch.indices, logits=logits, targets=batch.targets, **late)

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.ledger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.load_state_dict(state)


@cache
def data() -> Tensors:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(N, 12, generator=generator)
    return Tensors(inputs, torch.randint(CLASSES, (N,), generator=generator))


def network(seed: int) -> nn.Module:
    with seeds.seeded(seed, "weights"):
        return models.MLP((12,), CLASSES, width=16)


JOBS = {
    "study": Job("the memorization study, trainings and report", study),
    "sweep": Job("the capacity study, shared by three processes", sweep, processes=3),
    "scoring": Job("scores of a data set, in 24 files", scoring),
    "ledger": Job("a training with a ledger and checkpoints", ledger),
    "ensemble": Job("an ensemble with a checkpoint", ensemble),
}
