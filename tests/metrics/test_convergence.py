import math

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torch import nn
from torch.nn import functional as F

from memtools.metrics import TimeToConvergence


def batch(right, wrong):
    """Logits and targets of so many examples that are classified right, and wrong."""
    targets = torch.zeros(right + wrong).long()
    logits = torch.eye(2)[torch.tensor([0] * right + [1] * wrong).long()]
    return logits, targets


def run(metric, epochs):
    for batches in epochs:
        for right, wrong in batches:
            metric.update(*batch(right, wrong))
        metric.end_epoch()
    return {name: value.item() for name, value in metric.compute().items()}


RUNS = [
    [[(3, 1), (2, 0)], [(4, 0), (2, 0)], [(4, 0), (1, 1)]],
    [[(4, 0)]],
    [[(0, 4)], [(3, 1), (4, 0)]],
    [[(9, 1)], [(10, 0)]],
    [[(1, 1)], [(19, 1)], [(9, 1)]],
]


@pytest.mark.parametrize("epochs", RUNS)
@pytest.mark.parametrize("threshold", [1.0, 0.9, 0.5])
def test_is_the_first_epoch_above_the_threshold(epochs, threshold):
    accuracies = [sum(r for r, _ in b) / sum(r + w for r, w in b) for b in epochs]
    updates = [sum(len(b) for b in epochs[: e + 1]) for e in range(len(epochs))]
    there = [e for e, accuracy in enumerate(accuracies) if accuracy >= threshold]
    assert run(TimeToConvergence(threshold), epochs) == {
        "epochs": there[0] + 1 if there else math.inf,
        "updates": updates[there[0]] if there else math.inf,
        "is_censored": not there,
        "epochs_run": len(epochs),
        "updates_run": updates[-1],
    }


def test_an_epoch_under_way_decides_nothing():
    metric = TimeToConvergence()
    metric.update(*batch(4, 0))
    assert metric.compute()["is_censored"]
    metric.update(*batch(0, 1))
    metric.end_epoch()
    assert metric.compute()["is_censored"]
    metric.update(*batch(4, 0))
    assert metric.compute()["updates_run"] == 3
    metric.end_epoch()
    assert metric.compute()["epochs"] == 2


def test_a_pass_after_each_epoch_tells_the_number_of_updates():
    metric = TimeToConvergence()
    for epoch in (1, 2, 3):
        metric.update(*batch(2, 2 - epoch // 2 * 2))
        metric.update(*batch(3, 0))
        metric.end_epoch(updates=100 * epoch)
    result = metric.compute()
    assert result["epochs"] == 2
    assert result["updates"] == 200
    assert result["updates_run"] == 300


def test_an_epoch_needs_a_batch():
    metric = TimeToConvergence()
    for _ in range(2):
        with pytest.raises(ValueError, match="end_epoch needs a batch since the last epoch"):
            metric.end_epoch()
    metric.update(*batch(1, 0))
    with pytest.raises(ValueError, match="updates must not be negative, got -1"):
        metric.end_epoch(updates=-1)
    metric.end_epoch()
    with pytest.raises(ValueError, match="end_epoch needs a batch"):
        metric.end_epoch()
    assert metric.compute()["epochs_run"] == 1


def test_watches_a_training():
    torch.manual_seed(0)
    model, metric = nn.Linear(20, 2), TimeToConvergence()
    inputs, targets = torch.randn(16, 20), torch.randint(2, (16,))
    optimizer, accuracies = torch.optim.SGD(model.parameters(), lr=0.5), []
    for _ in range(40):
        right = 0
        for part in torch.randperm(16).split(5):
            logits = model(inputs[part])
            metric.update(logits, targets[part])
            right += int((logits.argmax(1) == targets[part]).sum())
            optimizer.zero_grad()
            F.cross_entropy(logits, targets[part]).backward()
            optimizer.step()
        metric.end_epoch()
        accuracies.append(right / 16)
    assert 1 < accuracies.index(1.0) + 1 == int(metric.compute()["epochs"])
    assert int(metric.compute()["updates"]) == 4 * (accuracies.index(1.0) + 1)


def test_parts_of_a_run_cannot_be_merged():
    with pytest.raises(RuntimeError, match="each part has judged its epochs by its own examples"):
        TimeToConvergence().merge_state(TimeToConvergence())
