"""The promise of every metric function: a call leaves no trace, also when it raises."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memtools
from memtools.guard import untouched
from memtools.testing import assert_untouched
from tests.test_matrix import METRICS, PREPARE, SURROUNDINGS, batch, build

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture(params=list(METRICS))
def metric(request):
    return METRICS[request.param]


@pytest.mark.parametrize("kind", PREPARE)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_nothing_changes(metric, kind, name, request):
    if kind == "distributed":
        request.getfixturevalue("process_group")
    model = PREPARE[kind](build())
    inputs, targets = batch()
    F.cross_entropy(model(inputs), targets).backward()
    user = inputs.clone().requires_grad_()
    with SURROUNDINGS[name](), assert_untouched(model, inputs=user, targets=targets):
        metric(model, user, targets)


class Raising(nn.Module):
    """Draws from every random state, writes wherever it can, then fails."""

    def __init__(self, model: nn.Module, error: Exception | None) -> None:
        super().__init__()
        self.model, self.error = model, error

    def forward(self, x):
        output = self.model(x) + torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
        self.model.train(not self.model.training)
        self.extra = output
        if self.error is not None:
            raise self.error
        return output * torch.nan


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, ValueError), (ZeroDivisionError(), ZeroDivisionError), (KeyboardInterrupt(), None)],
)
def test_nothing_changes_when_the_model_fails(metric, error, expected):
    model = Raising(build(), error)
    inputs, targets = batch()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad(), assert_untouched(model), pytest.raises(expected or KeyboardInterrupt):
        metric(model, inputs, targets)


@pytest.mark.parametrize("name", ["input_gradient_norms", "parameter_gradient_norms"])
def test_nothing_changes_when_the_loss_fails(name):
    model, (inputs, targets) = build(), batch()
    calls = []

    def loss(logits, y):
        calls.append(len(y))
        if len(calls) == 2:
            raise ZeroDivisionError
        return F.cross_entropy(logits, y, reduction="none")

    with torch.inference_mode(), assert_untouched(model), pytest.raises(ZeroDivisionError):
        METRICS[name](model, inputs, targets, loss_fn=loss, chunk_size=2)
    assert len(calls) == 2


def test_lstm_keeps_its_own_weights(metric, zoo):
    """An LSTM keeps a second list of its weights, which a swap of weights must not leave behind."""
    model, inputs, targets = zoo.build("LSTM", torch.float32)
    metric(model, inputs, targets)
    assert all(
        a is b for a, b in zip(model.lstm._flat_weights, model.lstm.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_the_old_kind_keeps_its_graph(metric):
    """It sets the weight as an attribute at each forward pass."""
    model = nn.utils.weight_norm(nn.Linear(4, 3))
    inputs, targets = batch()
    loss = F.cross_entropy(model(inputs), targets)
    weight = model.weight
    metric(model, inputs, targets)
    assert model.weight is weight
    loss.backward()
    assert model.weight_v.grad is not None


def test_buffers_of_spectral_norm_are_not_updated(metric, zoo):
    model, inputs, targets = zoo.build("spectral_norm", torch.float32)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    metric(model, inputs, targets)
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_parts_are_put_back_to_train_mode(zoo):
    """Their flags are no Python attributes."""
    model, inputs, _ = zoo.build("mlp", torch.float32)
    model.append(torch.jit.script(nn.Dropout()))
    memtools.find_critical(model, inputs, radius=0.1, max_steps=1)
    assert model[-1].training


def test_search_is_in_eval_mode_also_with_an_overridden_train():
    """`train` of some models merges weights; the flags are set without calling it."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            if not mode:
                self.weight.data.zero_()
            return super().train(mode)

    merging, dropout = Merging(4, 3), nn.Dropout()
    model = nn.Sequential(merging, dropout)
    inputs, _ = batch()
    modes = []
    dropout.register_forward_hook(lambda module, args, output: modes.append(module.training))
    memtools.find_critical(model, inputs, radius=0.1, max_steps=2)
    assert modes
    assert not any(modes)
    assert model.training
    assert dropout.training
    assert merging.weight.any()


def test_compiled_models_are_not_compiled_again():
    """A user's training has a limited number of recompilations to spend."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    inputs, targets = batch()
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled: Any = torch.compile(inner, backend=backend)
    for model in (
        compiled,
        nn.Sequential(nn.Identity(), compiled),
    ):
        model(inputs)
        compilations = len(graphs)
        for metric in METRICS.values():
            metric(model, inputs, torch.zeros_like(targets))
        assert len(graphs) == compilations > 0
        model(inputs)
        assert len(graphs) == compilations


def test_a_forward_is_a_function():
    """Two calls give the same, whatever the first wrote into buffers."""

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drift = nn.Buffer(torch.zeros(3))

        def forward(self, x):
            self.drift += 1
            return x[:, :3] + self.drift

    inputs, _ = batch()
    with untouched(Drifting()) as forward:
        first, second = forward(inputs), forward(inputs)
    assert torch.equal(first, second)


def test_the_model_must_be_a_module(metric):
    inputs, targets = batch()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        metric(lambda x: x, inputs, targets)


def test_an_embedding_that_rescales_its_own_weight_keeps_it():
    class Rescaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(3, 4, max_norm=0.1)

        def forward(self, x):
            return x @ self.embedding(torch.arange(3, device=x.device))

    model = Rescaled()
    before = model.embedding.weight.detach().clone()
    norms = memtools.input_gradient_norms(model, torch.randn(5, 3), torch.zeros(5).long())
    assert torch.equal(model.embedding.weight, before)
    with torch.no_grad():
        rescaled = model(torch.randn(5, 3))  # the model's own call does write
    assert rescaled.isfinite().all()
    assert not torch.equal(model.embedding.weight, before)
    assert (norms > 0).all()
