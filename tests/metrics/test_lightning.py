"""Inside a Lightning module: training, and validation in inference mode, with `self.log`."""

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")

import lightning
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from memtools import metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Module(lightning.LightningModule):
    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.model = model
        self.per_epoch = metrics.InputGradientGini(n)
        self.running = metrics.InputGradientGini(n)
        self.more = MetricCollection(
            {
                "small": metrics.CriticalSampleRatio(0.05),
                "large": metrics.CriticalSampleRatio(0.4, num_examples=n),
                "weights": metrics.ParameterGradientGini(n),
            }
        )
        self.classes = metrics.ClassSensitivity(3)
        self.convergence = metrics.TimeToConvergence(0.5)
        self.snapshots, self.seen, self.modes, self.rights = [], [], [], []

    def training_step(self, batch, _):
        inputs, targets, _ = batch
        logits = self.model(inputs)
        self.convergence.update(logits, targets)
        self.rights.append((logits.argmax(1) == targets).tolist())
        return F.cross_entropy(logits, targets)

    def on_train_epoch_end(self):
        self.convergence.end_epoch()
        self.log_dict({f"time/{k}": v for k, v in self.convergence.compute().items()})

    def on_validation_epoch_start(self):
        self.snapshots.append({k: v.clone() for k, v in self.model.state_dict().items()})

    def validation_step(self, batch, _):
        inputs, targets, indices = batch
        self.modes.append(torch.is_inference_mode_enabled())
        self.per_epoch(self.model, inputs, targets, indices)
        self.log("gini", self.per_epoch, on_epoch=True)
        self.running.update(self.model, inputs, targets, indices)
        self.more.update(model=self.model, inputs=inputs, targets=targets, indices=indices)
        self.log_dict(self.more, on_epoch=True)
        self.classes.update(self.model, inputs, targets)

    def on_validation_epoch_end(self):
        self.seen.append(self.running.compute())
        self.log("running", self.seen[-1])
        self.matrix = self.classes.compute()
        self.classes.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.3)


@pytest.fixture(scope="module")
def fitted(cases, tmp_path_factory):
    inputs, targets = cases.data()
    data = TensorDataset(inputs, targets, torch.arange(cases.N))
    loader = DataLoader(data, batch_size=5)
    with torch.random.fork_rng():
        module = Module(cases.network(), cases.N)
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path_factory.mktemp("lightning"),
        )
        trainer.fit(module, loader, loader)
        logged = dict(trainer.callback_metrics)
        trainer.validate(module, loader, verbose=False)
    return module, logged | trainer.callback_metrics


def test_logged_metrics_are_those_of_the_last_epoch(fitted, cases, oracles):
    module, logged = fitted
    assert set(module.modes) == {False, True}  # under no_grad while it trains
    (inputs, targets), model = cases.data(), cases.network()
    model.load_state_dict(module.snapshots[-1])
    norms = oracles.input_gradient_norms(model, inputs, targets)
    assert float(logged["gini"]) == pytest.approx(cases.naive_gini(norms.tolist()), rel=1e-6)
    norms = oracles.parameter_gradient_norms(model, inputs, targets)
    assert float(logged["weights"]) == pytest.approx(cases.naive_gini(norms.tolist()), rel=1e-6)
    for name, radius in (("small", 0.05), ("large", 0.4)):
        expected = metrics.CriticalSampleRatio(radius)
        expected.update(model, inputs)
        assert float(logged[name]) == pytest.approx(float(expected.compute()), rel=1e-6)
    expected = oracles.class_sensitivity(model, inputs, targets, classes=3)
    torch.testing.assert_close(module.matrix, expected, rtol=oracles.FLOAT64, atol=0)


def test_what_is_not_logged_itself_goes_on_over_the_epochs(fitted, cases, oracles):
    module, logged = fitted
    (inputs, targets), model = cases.data(), cases.network()
    total = torch.zeros(cases.N).double()
    assert len(module.snapshots) == 4
    for weights, seen in zip(module.snapshots, module.seen, strict=True):
        model.load_state_dict(weights)
        total += oracles.input_gradient_norms(model, inputs, targets)
        assert float(seen) == pytest.approx(cases.naive_gini(total.tolist()))
    assert float(logged["running"]) == pytest.approx(float(module.seen[-1]), rel=1e-6)


def test_time_to_convergence_counts_epochs_and_updates(fitted, cases):
    module, logged = fitted
    right = [sum(map(sum, module.rights[i : i + 3])) for i in range(0, 9, 3)]
    there = [epoch for epoch, number in enumerate(right, 1) if number >= 0.5 * cases.N]
    assert float(logged["time/epochs"]) == (there[0] if there else float("inf"))
    assert float(logged["time/updates"]) == (3 * there[0] if there else float("inf"))
    assert bool(logged["time/is_censored"]) is not bool(there)
    assert int(logged["time/epochs_run"]) == 3


def test_metrics_are_no_part_of_the_weights(fitted):
    module, _ = fitted
    assert all(name.startswith("model.") for name in module.state_dict())
