"""The promise of every metric function: a call leaves no trace, also when it raises."""

import contextlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memtools
from memtools.guard import untouched

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

METRICS = {
    "input_gradient_norms": memtools.input_gradient_norms,
    "parameter_gradient_norms": memtools.parameter_gradient_norms,
    "class_sensitivity": memtools.class_sensitivity,
    "find_critical": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.5, max_steps=3
    ),
    "find_critical, auto": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.5, method="auto", certify=True
    ),
    "critical_sample_ratio": lambda model, inputs, targets: memtools.critical_sample_ratio(
        model, inputs, radius=0.5, max_steps=3
    ),
    "linear_reach": lambda model, inputs, targets: memtools.linear_reach(model, inputs, radius=0.5),
}


@pytest.fixture(params=list(METRICS))
def metric(request):
    return METRICS[request.param]


class Recording(nn.Module):
    """Its BatchNorm is in eval mode while it trains; it keeps what it saw last, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0
        self.last = None

    def train(self, mode=True):
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        self.last = self.body(x)
        self.late = x.shape
        return self.head(self.last)


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Recording().train()


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 2, 1, 0])


def hooked(model):
    """Every kind of hook; those on weights and on their gradients must not see a metric call."""
    fired = []
    model.head.register_forward_pre_hook(lambda module, args: None)
    model.head.register_forward_hook(lambda module, args, output: output + 0.1)
    model.head.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: fired.append("gradient"))
        parameter.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    model.fired = fired
    return model


def frozen(model):
    model.body[0].requires_grad_(False)
    return model


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


PREPARE = {
    "plain": lambda model: model,
    "hooked": hooked,
    "frozen": frozen,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "distributed": distributed,
}

SURROUNDINGS = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def random_states():
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state(legacy=False)["state"]),  # noqa: NPY002
        random.getstate(),
    )


def global_state():
    return (
        *random_states(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.is_anomaly_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


def state_of(model):
    """All of a model: tensors by value, version and identity, everything else by identity."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    values = [(id(t), t._version, t.requires_grad, t.detach().clone()) for t in tensors]
    attributes = []
    for module in model.modules():
        for name, value in vars(module).items():
            inner = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else None
            attributes.append((name, id(value), inner))
    hooks = [list((p._backward_hooks or {}).values()) for p in model.parameters()]
    return values, attributes, hooks


def assert_same(before, after):
    for a, b in zip(before[0], after[0], strict=True):
        assert a[:3] == b[:3]
        assert torch.equal(a[3], b[3])
    assert before[1:] == after[1:]


def train(model, metric=None, surroundings=contextlib.nullcontext, autocast=False, steps=5):
    """The weights after a few steps, with a metric call before, inside and after each backward."""
    inputs, targets = batch()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    torch.manual_seed(7)

    def call():
        if metric is not None:
            with surroundings():
                metric(model, inputs, targets)

    for _ in range(steps):
        optimizer.zero_grad()
        # Noise from the global random state, which a metric call must not shift.
        noisy = inputs + 0.1 * torch.randn_like(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            call()
            loss = F.cross_entropy(model(noisy), targets)
            call()
        loss.backward()
        call()
        optimizer.step()
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("kind", PREPARE)
def test_training_ends_in_the_same_weights(metric, kind, request):
    if kind == "distributed":
        request.getfixturevalue("process_group")
    prepare = PREPARE[kind]
    without = train(prepare(build()))
    model = prepare(build())
    with_calls = train(model, metric)
    assert all(torch.equal(a, b) for a, b in zip(without, with_calls, strict=True))
    if kind == "hooked":
        trainable = sum(p.requires_grad for p in model.parameters())
        # Once a step for each weight, by the user's own backward.
        assert model.fired.count("gradient") == 5 * trainable
        assert model.fired.count("accumulated") == 5 * trainable


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_training_under_autocast_ends_in_the_same_weights(metric, name):
    without = train(build(), autocast=True)
    with_calls = train(build(), metric, SURROUNDINGS[name], autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(without, with_calls, strict=True))


@pytest.mark.parametrize("kind", PREPARE)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_nothing_changes(metric, kind, name, request):
    if kind == "distributed":
        request.getfixturevalue("process_group")
    model = PREPARE[kind](build())
    inputs, targets = batch()
    F.cross_entropy(model(inputs), targets).backward()
    user = inputs.clone().requires_grad_()
    copies = user.detach().clone(), targets.clone()
    versions = user._version, targets._version
    with SURROUNDINGS[name]():
        before = global_state(), state_of(model)
        metric(model, user, targets)
        assert global_state() == before[0]
    assert_same(before[1], state_of(model))
    assert torch.equal(user, copies[0])
    assert torch.equal(targets, copies[1])
    assert (user._version, targets._version) == versions
    assert user.grad is None
    assert user.requires_grad


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
    before = global_state(), state_of(model)
    with torch.no_grad(), pytest.raises(expected or KeyboardInterrupt):
        metric(model, inputs, targets)
    assert global_state() == before[0]
    assert_same(before[1], state_of(model))


@pytest.mark.parametrize("name", ["input_gradient_norms", "parameter_gradient_norms"])
def test_nothing_changes_when_the_loss_fails(name):
    model, (inputs, targets) = build(), batch()
    calls = []

    def loss(logits, y):
        calls.append(len(y))
        if len(calls) == 2:
            raise ZeroDivisionError
        return F.cross_entropy(logits, y, reduction="none")

    before = global_state(), state_of(model)
    with torch.inference_mode(), pytest.raises(ZeroDivisionError):
        METRICS[name](model, inputs, targets, loss_fn=loss, chunk_size=2)
    assert len(calls) == 2
    assert global_state() == before[0]
    assert_same(before[1], state_of(model))


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
