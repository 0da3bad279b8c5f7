"""A fit of :mod:`test_lightning_ranks` by two processes; the first writes what it found."""

import json
import sys
from pathlib import Path

import lightning
import lightning.pytorch
import torch
from torch.utils.data import DataLoader, TensorDataset

import memtools
from memtools.integrations.lightning import LedgerCallback, ProbeCallback

N, EPOCHS = 25, 2
"""An odd number: the sampler repeats an example in each epoch to make the batches even."""


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        inputs, targets, _ = batch
        logits = self(inputs)
        return {"loss": torch.nn.functional.cross_entropy(logits, targets), "logits": logits}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Lines(lightning.pytorch.Callback):
    """What reached the logger, as the process saw it."""

    def on_train_end(self, trainer, pl_module) -> None:
        (folder,) = (Path(sys.argv[1]),)
        rank = trainer.global_rank
        found = {
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
            "in memory": KEPT["memory"].presentations.tolist(),
            "weights": pl_module.state_dict()["net.weight"].tolist(),
            "logged": LOGGED,
        }
        (folder / f"rank{rank}.json").write_text(json.dumps(found))


KEPT = {}
LOGGED = []


def main() -> None:
    torch.set_num_threads(1)
    lightning.seed_everything(0, verbose=False)
    folder, is_measured = Path(sys.argv[1]), sys.argv[2] == "measured"
    inputs, targets = torch.randn(N, 4), torch.randint(3, (N,))
    data = TensorDataset(inputs, targets, torch.arange(N))
    KEPT["memory"] = memtools.Ledger(N)
    KEPT["folder"] = memtools.Ledger(N, folder / "ledger", resume=True)
    probe = memtools.Probe(inputs, targets, log=lambda values, step: LOGGED.append(step))
    callbacks: list[lightning.pytorch.Callback] = [Lines()]
    if is_measured:
        callbacks = [
            ProbeCallback(probe),
            LedgerCallback(KEPT["memory"]),
            LedgerCallback(KEPT["folder"]),
            *callbacks,
        ]
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(data, batch_size=4, shuffle=True))


if __name__ == "__main__":
    main()
