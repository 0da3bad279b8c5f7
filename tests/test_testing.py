"""The promise that users can test: each kind of trace is seen, and called by its name."""

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools.testing import assert_untouched


@pytest.fixture
def model():
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    F.cross_entropy(net(torch.randn(5, 3)), torch.zeros(5).long()).backward()
    net.cache = [1, 2]
    return net


def in_place(model):
    with torch.no_grad():
        model[0].weight.add_(1)


def rewritten(model):
    with torch.no_grad():
        model[0].weight.mul_(1)


def replaced(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def grad_gone(model):
    model.zero_grad()


def grad_added(model):
    model[2].bias.grad += 1


TRACES = {
    "weight '0.weight' has other values": in_place,
    "weight '0.weight' was written to, with the values that it had": rewritten,
    "weight '0.weight' is another tensor": replaced,
    ".grad of weight '2.bias' is gone": grad_gone,
    ".grad of weight '2.bias' has other values": grad_added,
    "buffer '1.running_mean' has other values": lambda model: model(torch.randn(5, 3)),
    "train/eval flag of '1' was True, is False": lambda model: model[1].eval(),
    "requires_grad of weight '2.weight' was True, is False": lambda model: model[2].requires_grad_(
        False
    ),
    "hooks of '2' (_forward_hooks) holds other objects": lambda model: model[
        2
    ].register_forward_hook(lambda *_: None),
    "hooks of weight '0.bias' (_backward_hooks) holds other objects": lambda model: model[
        0
    ].bias.register_hook(lambda grad: None),
    "attribute 'cache' holds other objects": lambda model: model.cache.append(3),
    "attribute '2.seen' is new": lambda model: setattr(model[2], "seen", 1),
    "attribute '0.in_features' is another object": lambda model: setattr(
        model[0], "in_features", 7
    ),
    "submodule '3' is new": lambda model: model.append(nn.ReLU()),
    "submodule '1' is another object": lambda model: model.__setitem__(1, nn.Identity()),
    "random state of torch is another one": lambda model: torch.rand(1),
    "random state of NumPy is another one": lambda model: np.random.rand(),  # noqa: NPY002
    "random state of Python is another one": lambda model: random.random(),
    "gradient mode was True, is False": lambda model: torch.set_grad_enabled(False),
    "autocast on cpu was False, is True": lambda model: torch.set_autocast_enabled("cpu", True),
}


@pytest.fixture
def _modes_put_back():
    yield
    torch.set_grad_enabled(True)
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.usefixtures("_modes_put_back")
@pytest.mark.parametrize("message", TRACES)
def test_a_trace_is_named(model, message):
    with pytest.raises(AssertionError, match=re.escape(message)), assert_untouched(model):
        TRACES[message](model)


@pytest.mark.usefixtures("_modes_put_back")
@pytest.mark.parametrize("message", TRACES)
def test_an_exception_wins_and_says_what_changed(model, message):
    def leave_and_fail():
        TRACES[message](model)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised, assert_untouched(model):
        leave_and_fail()
    assert message in "\n".join(raised.value.__notes__)


def test_an_exception_without_a_trace_has_no_note(model):
    with pytest.raises(ZeroDivisionError) as raised, assert_untouched(model):
        raise ZeroDivisionError
    assert not hasattr(raised.value, "__notes__")


def test_tensors_of_the_user(model):
    inputs = torch.randn(5, 3)
    with (
        pytest.raises(
            AssertionError, match=r"1 thing changed in the block:\n.*tensor 'inputs' has"
        ),
        assert_untouched(model, inputs=inputs),
    ):
        inputs.data.mul_(2)
    with pytest.raises(TypeError, match="inputs must be a tensor, got list; leave it out"):
        assert_untouched(model, inputs=[inputs]).__enter__()  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        assert_untouched("model").__enter__()  # type: ignore[arg-type]


def test_what_is_no_trace():
    """NaN that stays, equal numbers, an empty model, inference tensors, wrapped modules."""
    model: Any = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    model.count = 10**6
    with torch.inference_mode():
        frozen = torch.ones(2)
    for each in (model, nn.Identity(), torch.compile(model, backend="eager")):
        with assert_untouched(each, frozen=frozen, sparse=torch.eye(2).to_sparse()):  # type: ignore[arg-type]
            model.count = 10**6 + 0
            model.train(True)
