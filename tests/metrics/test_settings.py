"""Fingerprints: equal for equal settings, in every process; different for different ones."""

import pickle
import runpy
import subprocess
import sys
from functools import partial

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torch import nn
from torch.nn import functional as F

from memtools.metrics.settings import described, fingerprint


def scaled(factor):
    return lambda logits, y: factor * F.cross_entropy(logits, y, reduction="none")


class Loss:
    def __init__(self, factor) -> None:
        self.factor, self.own = factor, self

    def __call__(self, logits, y):
        return scaled(self.factor)(logits, y)

    def method(self, logits, y):
        return self(logits, y)


PAIRS = [
    (0.1, 0.1 + 1e-12),
    (None, "None"),
    (True, 1),
    (torch.zeros(2), torch.zeros(2, 1)),
    (torch.zeros(5000), torch.zeros(5000).index_fill(0, torch.tensor(2500), 1.0)),
    ((0, 1), (0, 2)),
    ((0, torch.tensor(1.0)), (0, torch.tensor(2.0))),
    ({"a": 1}, {"b": 1}),
    ({1}, {2}),
    (F.cross_entropy, F.nll_loss),
    (torch.sin, torch.cos),
    (Loss, nn.Linear),
    (scaled(1), scaled(2)),
    (lambda x, y: x, lambda x, y: y),
    (partial(F.cross_entropy, reduction="none"), partial(F.cross_entropy, reduction="sum")),
    (partial(F.cross_entropy, reduction="none"), partial(F.nll_loss, reduction="none")),
    (Loss(1), Loss(2)),
    (Loss(1).method, Loss(2).method),
    (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.2)),
    (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.arange(2.0))),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_different_settings_differ(first, second):
    assert described(first) != described(second)
    prints = [fingerprint("Metric", {"value": described(v)}) for v in (first, second)]
    assert not torch.equal(*prints)
    # torchmetrics compares states with a tolerance
    assert not torch.allclose(prints[0].float(), prints[1].float())


EQUAL = [
    (1, 1.0),
    (scaled(3), scaled(3)),
    (Loss(1), Loss(1)),
    (Loss(1).method, Loss(1).method),
    (partial(F.cross_entropy, reduction="none"), partial(F.cross_entropy, reduction="none")),
    (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.ones(2))),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1, 2}, {2, 1}),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal_settings_are_equal(first, second):
    assert described(first) == described(second)


def test_pickling_changes_nothing():
    values = (
        F.cross_entropy,
        nn.CrossEntropyLoss(torch.ones(2)),
        partial(F.nll_loss, ignore_index=1),
    )
    for value in values:
        assert described(pickle.loads(pickle.dumps(value))) == described(value)


def test_another_process_says_the_same(tmp_path, capsys):
    program = (
        "from memtools.metrics.settings import described\n"
        "from functools import partial\n"
        "from torch import nn\n"
        "from torch.nn import functional as F\n"
        "def scaled(factor):\n"
        "    return lambda x, y: factor * F.cross_entropy(x, y, reduction='none')\n"
        "print([described(v) for v in (scaled(2), nn.CrossEntropyLoss(), {'a', 'b', 'c'})])\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    other = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out == other.stdout != ""


def test_the_class_is_part_of_it():
    assert not torch.equal(fingerprint("A", {"p": "1.0"}), fingerprint("B", {"p": "1.0"}))
