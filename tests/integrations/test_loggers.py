"""What a probe measures arrives in each logger, under its name and at its step."""

import pytest
import torch
from torch import nn

from memtools.integrations.loggers import to_tensorboard, to_trackio, to_wandb
from memtools.probe import Probe

VALUES = {"probe/loss": 0.5, "probe/accuracy": 0.25}


class Recording:
    """In the shape of a run of Weights & Biases and of the module trackio."""

    def __init__(self) -> None:
        self.lines = []

    def log(self, data, step=None):
        self.lines.append((step, data))


@pytest.mark.parametrize("to", [to_wandb, to_trackio])
def test_a_run_gets_a_dict_and_a_step(to):
    run = Recording()
    to(run)(VALUES, 7)
    assert run.lines == [(7, VALUES)]


def test_tensorboard_keeps_every_value_at_its_step(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="no tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        log = to_tensorboard(writer)
        log(VALUES, 7)
        log({"probe/loss": 0.125}, 9)
    read = events.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("probe/loss")] == [(7, 0.5), (9, 0.125)]
    assert [(e.step, e.value) for e in read.Scalars("probe/accuracy")] == [(7, 0.25)]


def test_a_probe_logs_through_it():
    run = Recording()
    probe = Probe(torch.randn(6, 3), torch.zeros(6).long(), log=to_wandb(run))
    values = probe(nn.Linear(3, 2), epoch=1, step=40)
    assert run.lines == [(40, values)]
