"""The callbacks in trainings by Lightning itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import memtools
from memtools.probe import Probe

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
callbacks = pytest.importorskip("memtools.integrations.lightning")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

GENERATOR = torch.Generator().manual_seed(3)
INPUTS, TARGETS = torch.randn(24, 4, generator=GENERATOR), torch.arange(24) % 3
NAMES = {"loss", "accuracy", "gini_instantaneous", "gini_of_running_mean"}


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, number):
        inputs, targets, _ = batch
        logits = self(inputs)
        loss = F.cross_entropy(logits, targets)
        return {"loss": loss, "logits": logits}

    def validation_step(self, batch, number):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Seen(lightning.pytorch.loggers.logger.DummyLogger):
    """Keeps the lines that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        values = {k: v for k, v in metrics.items() if k.startswith("probe/")}
        if values:
            self.lines.append((step, values))


def loader(shuffle=True):
    data = TensorDataset(INPUTS, TARGETS, torch.arange(24))
    return DataLoader(data, batch_size=8, shuffle=shuffle)


def fresh(**options):
    probe = callbacks.ProbeCallback(Probe(INPUTS[:9], TARGETS[:9], **options))
    return probe, callbacks.LedgerCallback(memtools.Ledger(24))


def trainer(hooks, epochs=4, folder=None, **options):
    # The step numbers of the probe and of the logger are then compared as they are.
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(hooks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **options},
    )


def fit(hooks, epochs=4, checkpoint=None, seed=0, **options):
    torch.manual_seed(seed)
    model, run = Classifier(), trainer(hooks, epochs, **options)
    run.fit(model, loader(shuffle=False), loader(shuffle=False), ckpt_path=checkpoint)
    return model, run


def states_agree(one, other):
    for a, b in zip(one, other, strict=True):
        a, b = a.state_dict(), b.state_dict()
        assert a.keys() == b.keys()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_a_fit_logs_fills_the_ledger_and_ends_in_the_same_weights():
    seen, hooks = Seen(), fresh(radius=0.1)
    model, run = fit(hooks, logger=seen)
    without, _ = fit([])
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), without.state_dict().values(), strict=True)
    )
    names = {f"probe/{name}" for name in (*NAMES, "critical_sample_ratio")}
    assert [values.keys() for _, values in seen.lines] == [names] * 4
    assert names <= run.callback_metrics.keys()
    probe, kept = hooks
    assert probe.probe.measurements == 4
    assert (kept.ledger.scores()["presentations"] == 4).all()
    again = Probe(INPUTS[:9], TARGETS[:9], radius=0.1).measure(model)
    assert seen.lines[-1][1]["probe/loss"] == pytest.approx(again["probe/loss"])


def test_validate_and_test_give_the_values_and_count_in_no_mean():
    (probe, kept), model = fresh(), Classifier()
    run = trainer([probe, kept])
    for stage, method in (("validate", run.validate), ("test", run.test)):
        (result,) = method(model, loader(False), verbose=False)
        # No mean without a measurement but the one at hand.
        assert {f"{stage}/probe/{name}" for name in NAMES} <= result.keys()
    assert probe.probe.measurements == 0
    assert (kept.ledger.scores()["presentations"] == 0).all()


@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},  # after validation
        {"every_n_train_steps": 6},  # at the last batch of an epoch
        {"every_n_train_steps": 4},  # inside one
    ],
)
def test_a_resumed_fit_goes_on_without_doubling(saving, tmp_path):
    whole = fresh()
    fit(whole)
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", save_top_k=-1, **saving
    )
    fit([*fresh(), saver], epochs=2, enable_checkpointing=True)
    (path,) = [p for p in tmp_path.glob("*.ckpt") if p.stem in ("step=4", "step=6")]
    assert torch.load(path, weights_only=True)["callbacks"]
    resumed = fresh()
    fit(resumed, checkpoint=path, seed=1)
    if path.stem == "step=4":  # Lightning begins the epoch's batches anew, with fewer of them
        assert resumed[0].probe.measurements == 4
        assert resumed[1].ledger.scores()["presentations"].sum() == 4 * 24
    else:
        states_agree(whole, resumed)


def test_a_second_fit_begins_anew_and_several_probes_stand_side_by_side():
    (one, _), (other, _) = fresh(), fresh(name="other", every=2)
    fit([one, other])
    fit([one, other])
    assert one.probe.measurements == 4
    assert other.probe.measurements == 3
    assert one.state_key != other.state_key


def test_the_ledger_takes_a_function_and_a_submodule_can_be_measured():
    ledger = memtools.Ledger(24)
    record = callbacks.LedgerCallback(
        ledger, lambda outputs, batch: {"indices": batch[2], "mine": outputs["logits"][:, 0]}
    )
    probe = callbacks.ProbeCallback(Probe(INPUTS, TARGETS), model="net")
    fit([record, probe], epochs=1)
    assert "mine" in ledger.scores()
    assert probe.probe.measurements == 1


@pytest.mark.parametrize(
    ("outputs", "batch", "message"),
    [
        ({"loss": 1}, (INPUTS, TARGETS, TARGETS), r"outputs must hold 'logits', got \['loss'\]"),
        (torch.ones(()), (INPUTS, TARGETS, TARGETS), "'logits', got Tensor; return"),
        ({"logits": INPUTS}, (INPUTS, TARGETS), r"\(inputs, targets, indices\), got tuple of 2"),
        ({"logits": INPUTS}, {}, r"batch must be \(inputs, targets, indices\), got dict; return"),
    ],
)
def test_what_the_default_record_cannot_read(outputs, batch, message):
    callback = callbacks.LedgerCallback(memtools.Ledger(24))
    with pytest.raises(ValueError, match=message):
        callback.on_train_batch_end(None, None, outputs, batch, 0)


def test_wrong_kinds():
    with pytest.raises(TypeError, match=r"probe must be a memtools\.Probe, got Ledger"):
        callbacks.ProbeCallback(memtools.Ledger(2))
    with pytest.raises(TypeError, match=r"ledger must be a memtools\.Ledger, got int"):
        callbacks.LedgerCallback(3)
    callback = callbacks.LedgerCallback(memtools.Ledger(2), lambda outputs, batch: [])
    with pytest.raises(TypeError, match=r"record must return a dict .*, got list"):
        callback.on_train_batch_end(None, None, None, None, 0)
