"""Norms read off the user's own backward pass, in a training that does not notice."""

import contextlib
import copy
import gc
import io
import json
import math
import subprocess
import sys
import weakref
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import distributed, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils.checkpoint import checkpoint

import memtools

# PyTorch's own, about tracing, nested tensors and loops for vmap; and ours about the embedding that
# is found.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TARGETS = torch.tensor([0, 2, 1, 1, 2])


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mlp(*, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model.to(dtype)


class Net(nn.Module):
    """A forward function over its parts."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def lstm(function=lambda m, x: m.head(m.lstm(x)[0][:, -1])):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(function, lstm=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 3))


def mean_loss(model, x, y):
    return F.cross_entropy(model(x), y)


def loop(model, x, y, loss=mean_loss):
    """Norms of the input (1-norm) and weight gradients, from a batch of one at a time."""
    of_inputs, of_weights = [], []
    for one, target in zip(x.split(1), y.split(1), strict=True):
        fresh, one = copy.deepcopy(model), one.detach().clone().requires_grad_()
        weights = [w for w in fresh.parameters() if w.requires_grad]
        value = loss(fresh, one, target)
        own, *gradients = torch.autograd.grad(value, [one, *weights], allow_unused=True)
        of_inputs.append(torch.zeros(()) if own is None else own.abs().sum())
        of_weights.append(sum(g.square().sum() for g in gradients if g is not None) ** 0.5)
    return SimpleNamespace(inputs=torch.stack(of_inputs), parameters=torch.stack(of_weights))


def assert_norms(watched, expected, rtol=1e-10):
    inputs, parameters = watched.input_gradient_norms(), watched.parameter_gradient_norms()
    torch.testing.assert_close(parameters, expected.parameters, rtol=rtol, atol=0)
    torch.testing.assert_close(inputs, expected.inputs, rtol=rtol, atol=0)


def assert_watched(model, x, y, loss=mean_loss, *, steps=1, expected=None):
    """The norms are those of the loop; those of later steps too, when the model is known."""
    expected = expected or loop(model, x, y, loss)
    with memtools.watch(model) as watched:
        for _ in range(steps):
            loss(model, x, y).backward()
            assert_norms(watched, expected)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


# Which numbers.


def assert_case(case, oracles, reduction: Literal["mean", "sum"] = "mean"):
    loss = getattr(case, "loss", None) or oracles.cross_entropy
    of_weights = oracles.parameter_gradient_norms(case.model, case.inputs, case.targets, loss=loss)
    model, state = case.model, copy.deepcopy(case.model.state_dict())
    for _ in range(2):  # the second time it is known where the examples are
        model.load_state_dict(state)  # a forward pass may write to weights and buffers
        with memtools.watch(model, reduction=reduction) as watched:
            # A copy, for models that work in place on their inputs.
            losses = loss(oracles.logits_of(model, case.inputs.clone()), case.targets)
            getattr(losses, reduction)().backward()
        found = watched.parameter_gradient_norms()
        torch.testing.assert_close(found, of_weights, rtol=oracles.FLOAT64, atol=0)
        if case.inputs.is_floating_point():
            model.load_state_dict(state)
            expected = oracles.input_gradient_norms(model, case.inputs, case.targets, loss=loss)
            found = watched.input_gradient_norms()
            torch.testing.assert_close(found, expected, rtol=oracles.FLOAT64, atol=0)


def test_every_model(zoo, model_name, oracles):
    case = zoo.build(model_name, torch.float64)
    if model_name != "spectral_norm":
        assert_case(case, oracles)
        return
    with pytest.raises(ValueError, match=r"no closed form .* buffers that it updates"):
        assert_case(case, oracles)


def test_every_way_to_use_a_weight(gradient_case, oracles):
    # A sum, since Llama rounds to single precision inside, and a mean to something else.
    assert_case(gradient_case(torch.float64), oracles, "sum")


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_orders_of_the_input_norms(p):
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
        found = watched.input_gradient_norms(p)
    torch.testing.assert_close(found, memtools.input_gradient_norms(model, x, TARGETS, p=p))


def test_a_sum_of_losses():
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model, reduction="sum") as watched:
        F.cross_entropy(model(x), TARGETS, reduction="sum").backward()
    assert_norms(watched, loop(model, x, TARGETS))


def test_a_scaled_loss():
    model, x = mlp(), draw(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with memtools.watch(model, loss_scale=0.25) as watched:
        (mean_loss(model, x, TARGETS) / 4).backward()
    assert_norms(watched, loop(model, x, TARGETS))
    for scale in (1024.0, 512.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        expected = loop(model, x, TARGETS)
        with memtools.watch(model, loss_scale=scaler.get_scale) as watched:
            optimizer.zero_grad()
            scaler.scale(mean_loss(model, x, TARGETS)).backward()
            scaler.step(optimizer)
            scaler.update(1.0)
            assert_norms(watched, expected)  # with the scale of the time of the backward pass


def test_accumulated_gradients():
    model, x = mlp(), draw(7, 4)
    y = TARGETS.repeat(2)[:7]
    batches = [slice(0, 4), slice(4, 7)]
    expected = [loop(model, x[rows], y[rows]) for rows in batches]
    with memtools.watch(model, loss_scale=0.5) as watched:
        for rows, norms in zip(batches, expected, strict=True):
            (mean_loss(model, x[rows], y[rows]) / 2).backward()
            assert_norms(watched, norms)


def test_passes_before_one_backward_come_in_their_order():
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as watched:
        first = mean_loss(model, x[:2], TARGETS[:2])
        model(x)  # not part of the loss
        second = mean_loss(model, x[2:], TARGETS[2:])
        (second + first).backward()
    assert_norms(watched, loop(model, x, TARGETS))


@pytest.mark.parametrize("make", [mlp, lstm])
def test_two_backward_passes_on_one_graph(make):
    model, x = make(), draw(5, 4) if make is mlp else draw(5, 7, 4)
    once = loop(model, x, TARGETS)
    doubled = SimpleNamespace(inputs=2 * once.inputs, parameters=2 * once.parameters)
    with memtools.watch(model) as watched:
        loss = mean_loss(model, x, TARGETS)
        loss.backward(retain_graph=True)
        assert_norms(watched, once)
        (2 * loss).backward()
        assert_norms(watched, doubled)


def test_autocast():
    """The masters are in single precision, and the products in bfloat16."""
    model, x = mlp(dtype=torch.float32), draw(5, 4).float()
    with memtools.watch(model) as watched:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mean_loss(model, x, TARGETS)
        loss.backward()
        assert watched.parameter_gradient_norms().dtype == torch.float32

    def cast(model, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mean_loss(model, x, y)

    # The same roundings, but for sums in another order.
    assert_norms(watched, loop(model, x, TARGETS, cast), rtol=2**-7)


def test_dropout_masks_are_those_that_were_drawn():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3)).double()
    x, masks = draw(5, 4), []
    torch.manual_seed(5)
    handle = model[2].register_forward_hook(lambda m, args, out: masks.append(out / args[0]))
    model(x)
    handle.remove()
    (mask,) = masks
    assert (mask == 0).any()

    def masked(fresh, one, y):
        (row,) = [i for i in range(5) if torch.equal(x[i : i + 1], one)]
        return F.cross_entropy(fresh[3](fresh[1](fresh[0](one)) * mask[row]), y)

    expected = loop(model, x, TARGETS, masked)
    for _ in range(2):
        torch.manual_seed(5)
        assert_watched(model, x, TARGETS, expected=expected)


def test_noise_in_the_model():
    """Drawn in eval mode as well, as by a variational autoencoder."""
    model, x = Net(lambda m, x: m.body(x + torch.randn_like(x)), body=mlp()), draw(5, 4)
    torch.manual_seed(5)
    expected = loop(model.body, x + torch.randn_like(x), TARGETS)
    torch.manual_seed(5)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
    torch.testing.assert_close(watched.input_gradient_norms(), expected.inputs)
    with pytest.raises(ValueError, match="random numbers of its forward pass"):
        watched.parameter_gradient_norms()


def test_keywords_and_several_tensors():
    def forward(m, x, *, scale, other, flag=True):
        return m.body(x * scale + m.other(other)) if flag else None

    model = Net(forward, body=mlp(), other=nn.Linear(2, 4))
    x, scale, other = draw(5, 4), draw(5, 1, seed=2), draw(5, 2, seed=3)

    def loss(model, x, y):
        rows = [int((draw(5, 4) == one).all(1).nonzero()) for one in x.detach()]
        return F.cross_entropy(model(x=x, scale=scale[rows], other=other[rows]), y)

    assert_watched(model, x, TARGETS, loss, steps=2)


def test_a_mask_with_as_many_rows_as_the_batch():
    """It belongs to the positions, and not to the examples."""

    def forward(m, x, mask):
        return m.head(m.attention(x, x, x, attn_mask=mask)[0].mean(1))

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = Net(forward, attention=attention, head=nn.Linear(4, 3))
    mask = torch.ones(5, 5).triu(1).bool()
    assert_watched(
        model, draw(5, 5, 4), TARGETS, lambda m, x, y: F.cross_entropy(m(x, mask), y), steps=2
    )


def test_training_goes_on_with_a_state_that_has_the_batch_second():
    model = lstm(lambda m, x, state: m.head(m.lstm(x, state)[0][:, -1]))
    state = torch.zeros(1, 5, 5).double(), torch.zeros(1, 5, 5).double()
    with memtools.watch(model) as watched:
        F.cross_entropy(model(draw(5, 7, 4), state), TARGETS).backward()
    assert watched.input_gradient_norms().shape == (5,)


@pytest.mark.parametrize("given", [None, "embedding", "module"])
def test_tokens(given, oracles):
    embedding = nn.Embedding(9, 4)
    model = Net(
        lambda m, x: m.head(torch.tanh(m.embedding(x)).mean(1)),
        embedding=embedding,
        head=nn.Linear(4, 3),
    )
    x = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    with memtools.watch(model, embedding=embedding if given == "module" else given) as watched:
        mean_loss(model, x, TARGETS).backward()
    expected = SimpleNamespace(
        inputs=oracles.embedding_gradient_norms(model, x, TARGETS, "embedding"),
        parameters=oracles.parameter_gradient_norms(model, x, TARGETS),
    )
    assert_norms(watched, expected)


def test_a_frozen_embedding_that_is_scaled_in_place(oracles):
    def forward(m, x):
        hidden = m.embedding(x)
        hidden *= 2
        return m.head(torch.tanh(hidden).mean(1))

    embedding = nn.Embedding(9, 4).requires_grad_(False)
    model = Net(forward, embedding=embedding, head=nn.Linear(4, 3))
    x = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(0))
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
    expected = oracles.parameter_gradient_norms(model, x, TARGETS)
    torch.testing.assert_close(watched.parameter_gradient_norms(), expected, rtol=1e-10, atol=0)


class Holder:
    """A record of a library that PyTorch does not know."""

    def __init__(self, logits):
        self.fields = {"logits": logits}


RETURNS = {
    "tuple": (lambda z: (z, None), lambda r: r[0]),
    "dict": (lambda z: {"logits": z, "hidden": [z * 2]}, lambda r: r["logits"]),
    "record": (lambda z: SimpleNamespace(logits=z, hidden=None), lambda r: r.logits),
}


@pytest.mark.parametrize("kind", list(RETURNS))
def test_what_a_model_returns(kind):
    pack, unpack = RETURNS[kind]
    model = Net(lambda m, x: pack(m.body(x)), body=mlp())
    assert_watched(
        model, draw(5, 4), TARGETS, lambda m, x, y: F.cross_entropy(unpack(m(x)), y), steps=2
    )


def test_a_loss_of_several_outputs_and_of_one_of_them():
    def forward(m, x):
        hidden = m.trunk(x)
        return m.one(hidden), m.two(hidden)

    model = Net(forward, trunk=mlp(), one=nn.Linear(3, 3), two=nn.Linear(3, 1))

    def both(m, x, y):
        one, two = m(x)
        return F.cross_entropy(one, y) + two.square().mean()

    assert_watched(model, draw(5, 4), TARGETS, both, steps=2)
    assert_watched(model, draw(5, 4), TARGETS, lambda m, x, y: F.cross_entropy(m(x)[0], y))


def test_the_model_returns_a_weight():
    model = Net(lambda m, x: (m.body(x), m.scale), body=mlp(), scale=nn.Parameter(torch.ones(())))

    def loss(m, x, y):
        logits, scale = m(x)
        return F.cross_entropy(logits * scale, y)

    with memtools.watch(model) as watched:
        for _ in range(2):
            loss(model, draw(5, 4), TARGETS).backward()
    assert watched.input_gradient_norms().shape == (5,)
    assert not model.scale._backward_hooks


def test_the_model_computes_the_loss():
    model = Net(lambda m, x, y: (F.cross_entropy(m.body(x), y),), body=mlp())
    assert_watched(model, draw(5, 4), TARGETS, lambda m, x, y: m(x, y)[0], steps=2)


def test_inputs_that_require_a_gradient():
    """The same leaf again and again, as in adversarial training."""
    model, x = mlp(), draw(5, 4).requires_grad_()
    expected = loop(model, x, TARGETS)
    with memtools.watch(model) as watched:
        for _ in range(3):
            x.grad = None
            mean_loss(model, x, TARGETS).backward()
            assert_norms(watched, expected)
            assert x.grad is not None
            torch.testing.assert_close(x.grad.abs().sum(1) * 5, expected.inputs)
    assert not x._backward_hooks


def test_the_input_norms_do_not_alias_the_users_gradient():
    model, x = mlp(), draw(5, 4).requires_grad_()
    expected = loop(model, x, TARGETS)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
        assert x.grad is not None
        x.grad.zero_()
        assert_norms(watched, expected)


def test_inputs_from_another_model():
    """What is before and after a watched part does not count."""
    before, part, after = mlp(seed=1), mlp(), nn.Linear(3, 3).double()
    before = before.append(nn.Linear(3, 4).double())
    model = nn.Sequential(before, part, after)
    with torch.no_grad():
        x = before(draw(5, 4))
    expected = loop(part, x, TARGETS, lambda m, x, y: F.cross_entropy(after(m(x)), y))
    with memtools.watch(part) as watched:
        mean_loss(model, draw(5, 4), TARGETS).backward()
        assert_norms(watched, expected)


def test_a_part_and_the_whole():
    part, head = mlp(), nn.Linear(3, 3).double()
    model, x = nn.Sequential(part, head), draw(5, 4)
    expected = loop(model, x, TARGETS)
    of_part = loop(part, x, TARGETS, lambda m, x, y: F.cross_entropy(head(m(x)), y))
    with memtools.watch(model) as watched, memtools.watch(part) as inner:
        mean_loss(model, x, TARGETS).backward()
        assert_norms(watched, expected)
        assert_norms(inner, of_part)


def test_two_watches_on_one_model():
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as first, memtools.watch(model, loss_scale=2) as second:
        mean_loss(model, x, TARGETS).backward()
    expected = loop(model, x, TARGETS)
    assert_norms(first, expected)
    torch.testing.assert_close(second.input_gradient_norms() * 2, expected.inputs)
    torch.testing.assert_close(second.parameter_gradient_norms() * 2, expected.parameters)
    assert not _get_current_function_mode_stack()


def test_evaluation_in_between():
    model, x = mlp().append(nn.Dropout(0.0)), draw(5, 4)
    expected = loop(model, x, TARGETS)
    with memtools.watch(model) as watched:
        for _ in range(2):
            model.train()
            loss = mean_loss(model, x, TARGETS)
            model.eval()
            with torch.no_grad():
                model(draw(3, 4, seed=2))
            with torch.inference_mode():
                model(draw(3, 4, seed=2))
            loss.backward()
            with torch.no_grad():
                model(draw(3, 4, seed=2))
            assert_norms(watched, expected)


@pytest.mark.parametrize("make", [mlp, lstm])
def test_the_other_functions_can_be_called_meanwhile(make):
    model, x = make(), draw(5, 4) if make is mlp else draw(5, 7, 4)
    expected = loop(model, x, TARGETS)
    with memtools.watch(model) as watched:
        loss = mean_loss(model, x, TARGETS)
        between = memtools.parameter_gradient_norms(model, x, TARGETS)
        loss.backward()
        gradients = [w.grad for w in model.parameters()]
        after = memtools.gradient_norms(model, x[:2], TARGETS[:2])
        assert_norms(watched, expected)
    torch.testing.assert_close(between, expected.parameters)
    torch.testing.assert_close(after.inputs, expected.inputs[:2])
    assert all(g is w.grad for g, w in zip(gradients, model.parameters(), strict=True))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_batches_of_all_sizes_in_turn(n):
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Flatten(), nn.Linear(6, 3))
    model = model.double()
    for rows in (slice(0, 5), slice(0, n), slice(0, 5)):
        assert_watched(model, draw(5, 4)[rows], TARGETS[rows])


def test_training_goes_on_with_an_empty_batch():
    model = mlp()
    with memtools.watch(model, reduction="sum"):
        F.cross_entropy(model(draw(0, 4)), TARGETS[:0], reduction="sum").backward()
    assert all(w.grad is not None and not w.grad.any() for w in model.parameters())


def test_a_model_that_is_applied_to_its_own_output():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    x = draw(5, 4)
    with torch.no_grad():
        hidden = model(x)
    frozen = copy.deepcopy(model).requires_grad_(False)
    second = loop(model, hidden, TARGETS)
    first = loop(model, x, TARGETS, lambda m, x, y: F.cross_entropy(frozen(m(x)), y))
    with memtools.watch(model) as watched:
        mean_loss(lambda x: model(model(x)), x, TARGETS).backward()
        found = watched.parameter_gradient_norms()
    torch.testing.assert_close(found, torch.cat([first.parameters, second.parameters]))


def test_buffers_that_a_forward_pass_updates():
    """The weights without a closed form could only be done again with other buffers."""

    def forward(m, x):
        m.drift.add_(1)
        return m.head(m.lstm(x)[0][:, -1]) * m.drift

    model = lstm(forward)
    model.register_buffer("drift", torch.zeros(()).double())
    with pytest.raises(ValueError, match=r"no closed form .* gives something else"):
        assert_case(SimpleNamespace(model=model, inputs=draw(5, 7, 4), targets=TARGETS), _Plain)


class _Plain:
    """What `assert_case` needs of the oracles, by the loop of this file."""

    FLOAT64 = 1e-10
    cross_entropy = staticmethod(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    logits_of = staticmethod(lambda model, x: model(x))
    parameter_gradient_norms = staticmethod(lambda m, x, y, loss: loop(m, x, y).parameters)
    input_gradient_norms = staticmethod(lambda m, x, y, loss: loop(m, x, y).inputs)


@pytest.mark.parametrize("make", [mlp, lstm])
def test_hooks_on_the_model_itself(make):
    model, x = make(), draw(5, 4) if make is mlp else draw(5, 7, 4)
    model.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    expected = loop(model, x, TARGETS)
    # The input of the model is that of its own forward pass, behind the hook.
    expected.inputs = expected.inputs / 1.5
    refused = pytest.raises(ValueError, match="because of hooks on the model")
    with refused if make is lstm else contextlib.nullcontext():
        assert_watched(model, x, TARGETS, expected=expected)


@pytest.mark.parametrize("make", [mlp, lstm])
def test_a_later_hook_that_changes_the_output(make):
    model, x = make(), draw(5, 4) if make is mlp else draw(5, 7, 4)
    expected = loop(model, x, TARGETS, lambda m, x, y: F.cross_entropy(m(x) * 2, y))
    with memtools.watch(model) as watched:
        model.register_forward_hook(lambda module, args, output: output * 2)
        mean_loss(model, x, TARGETS).backward()
        refused = pytest.raises(ValueError, match="because of hooks on the model")
        with refused if make is lstm else contextlib.nullcontext():
            assert_norms(watched, expected)


def test_a_loss_on_an_activation_that_is_not_returned():
    """Kept as an attribute, as a penalty on activations is; seen as far as closed forms go."""

    def forward(m, x):
        m.hidden = torch.tanh(m.fc(x))
        return m.head(m.hidden)

    x, model = draw(5, 4), Net(forward, fc=nn.Linear(4, 5), head=nn.Linear(5, 3))

    def loss(m, x, y):
        return F.cross_entropy(m(x), y) + m.hidden.square().sum(1).mean()

    expected = loop(model, x, TARGETS, loss)
    with memtools.watch(model) as watched:
        loss(model, x, TARGETS).backward()
        assert_norms(watched, expected)


def test_a_gradient_penalty():
    """Weights also act in the backward pass that is differentiated."""

    def loss(model, x, y):
        x = x if x.requires_grad else x.clone().requires_grad_()
        logits = model(x)
        value = F.cross_entropy(logits, y, reduction="sum")
        (own,) = torch.autograd.grad(value, x, create_graph=True)
        return value / len(x) + own.square().sum(1).mean()

    model, x = mlp(), draw(5, 4)
    expected = loop(model, x, TARGETS, loss)
    with memtools.watch(model) as watched:
        loss(model, x, TARGETS).backward()
        with contextlib.suppress(ValueError, RuntimeError):  # or refuses
            found = watched.parameter_gradient_norms()
            torch.testing.assert_close(found, expected.parameters)


def test_a_backward_pass_with_a_graph_of_its_own():
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward(create_graph=True)
        for read in (watched.input_gradient_norms, watched.parameter_gradient_norms):
            with pytest.raises(ValueError, match="create_graph=True"):
                read()
    for weight in model.parameters():
        weight.grad = None


@pytest.mark.parametrize("where", ["whole", "around", "inside"])
@pytest.mark.parametrize("layers", [1, 3])
def test_checkpoints(where, layers):
    """The forward pass of a watched model, or of a part of it, comes again while it is read."""

    def forward(m, x):
        if where == "inside":
            x = checkpoint(m.block, x, use_reentrant=False)
        return m.head(m.block(x))

    block = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(4, 4), nn.Tanh())])
    model, x = Net(forward, block=block, head=nn.Linear(4, 3)), draw(5, 4)

    def loss(m, x, y):
        if where == "whole":
            return F.cross_entropy(checkpoint(m, x, use_reentrant=False), y)
        if where == "around":
            run = checkpoint(lambda x: m(torch.tanh(x)).sin(), x, use_reentrant=False)
            return F.cross_entropy(run, y)
        return mean_loss(m, x, y)

    expected = loop(model, x, TARGETS, loss)
    with memtools.watch(model) as watched:
        for _ in range(2):
            loss(model, x, TARGETS).backward()
            found = watched.parameter_gradient_norms()
            torch.testing.assert_close(found, expected.parameters, rtol=1e-10, atol=0)


def test_weights_swapped_in_by_functional_call():
    """As in the inner loop of meta-learning; the model's own weights get none of the gradient."""
    model, x = mlp(), draw(5, 4)
    fast = {name: (w * 0.9) for name, w in model.named_parameters()}
    with memtools.watch(model) as watched:
        F.cross_entropy(functional_call(model, fast, (x,)), TARGETS).backward()
        with contextlib.suppress(ValueError, RuntimeError):  # or refuses
            assert (watched.parameter_gradient_norms() > 0).all()


def test_reading_after_the_step():
    def forward(m, x):
        return m.norm(m.act(m.fc(x))) / m.scale * m.other

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(
            forward,
            fc=nn.Linear(4, 3),
            act=nn.PReLU(),
            norm=nn.LayerNorm(3),
            scale=nn.Parameter(torch.tensor(1.3)),
            other=nn.Parameter(torch.rand(3)),
        )
    x, expected = draw(5, 4), loop(model, draw(5, 4), TARGETS)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert_norms(watched, expected)


# What the training notices.


def batch_norm_in_eval():
    model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(4, 3))
    model[1].eval()
    return nn.Sequential(nn.Unflatten(1, (2, 2)), model)


def with_dropout():
    return nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 3), nn.Dropout(0.1)
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x[:, None].repeat(1, 3, 1))[0][:, -1])


def momentum(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def adam(weights):
    return torch.optim.Adam(weights, lr=1e-2)


TRAININGS = {
    "momentum": (with_dropout, momentum, {}),
    "Adam": (with_dropout, adam, {}),
    "autocast": (with_dropout, adam, {"autocast": True}),
    "scaled": (with_dropout, momentum, {"scaled": True}),
    "BatchNorm in eval": (batch_norm_in_eval, momentum, {}),
    "accumulation": (with_dropout, adam, {"accumulate": 2}),
    "recurrent": (Recurrent, adam, {}),
    "clipped": (with_dropout, adam, {"clip": True}),
}


def train(name, *, watching, steps=24):
    """Weights, random numbers and losses at the end of a training."""
    build, make_optimizer, options = TRAININGS[name]
    torch.manual_seed(0)
    model = build()
    optimizer = make_optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=options.get("scaled", False))
    generator, losses = torch.Generator().manual_seed(3), []
    around = memtools.watch(model, loss_scale=scaler.get_scale)
    with around if watching else contextlib.nullcontext() as watched:
        for step in range(steps):
            n = 7 if step % 5 else 3
            x = torch.randn(n, 4, generator=generator)
            y = torch.randint(3, (n,), generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            losses.append(loss.item())
            if watched is not None and step % 2:
                with contextlib.suppress(ValueError):  # of dropout beside a recurrent layer
                    assert watched.parameter_gradient_norms().shape == (n,)
                assert watched.input_gradient_norms().shape == (n,)
            if step % options.get("accumulate", 1) == 0:
                if options.get("clip"):
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    return dict(model.state_dict()), torch.get_rng_state(), losses


@pytest.mark.parametrize("name", list(TRAININGS))
def test_training_is_the_same_to_the_last_bit(name):
    plain, watched = train(name, watching=False), train(name, watching=True)
    assert all(torch.equal(plain[0][key], watched[0][key]) for key in plain[0])
    assert torch.equal(plain[1], watched[1])
    assert plain[2] == watched[2]


def test_the_users_batch_stays_as_it_is():
    """Also under a model that works in place on its inputs."""
    model = nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Linear(4, 3)).double()
    x = draw(5, 4)
    expected = loop(model, x, TARGETS, lambda m, x, y: mean_loss(m, x * 1, y))
    with memtools.watch(model) as watch:
        mean_loss(model, x, TARGETS).backward()
        assert_norms(watch, expected)
    assert torch.equal(x, draw(5, 4))


def test_hooks_on_weights_fire_as_without():
    def fired(watching, x, make):
        model, seen = make(), []
        for name, weight in model.named_parameters():
            weight.register_hook(lambda gradient, name=name: seen.append((name, gradient.clone())))
            weight.register_post_accumulate_grad_hook(lambda w, name=name: seen.append((name, w)))
        with memtools.watch(model) if watching else contextlib.nullcontext():
            for _ in range(2):
                mean_loss(model, x, TARGETS).backward()
        return seen

    for make, x in ((mlp, draw(5, 4)), (lstm, draw(5, 7, 4))):
        plain, watched = fired(False, x, make), fired(True, x, make)
        assert [name for name, _ in plain] == [name for name, _ in watched]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain, watched, strict=True))


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_transforms_of_the_model_go_on(transform):
    model, x = mlp(), draw(5, 4)

    def call():
        match transform:
            case "vmap":
                return vmap(model)(x)
            case "jvp":
                return torch.func.jvp(model, (x,), (x,))[1]
        weights = {name: w.detach() for name, w in model.named_parameters()}

        def loss(weights, x, y):
            return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

        return vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, TARGETS)["0.weight"]

    expected = call()
    with memtools.watch(model) as watched:
        torch.testing.assert_close(call(), expected)
        mean_loss(model, x, TARGETS).backward()
    assert_norms(watched, loop(model, x, TARGETS))


@pytest.mark.parametrize("way", ["deepcopy", "save"])
def test_the_model_can_be_copied_and_saved_meanwhile(way):
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
        if way == "deepcopy":
            twin = copy.deepcopy(model)
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            twin = torch.load(file, weights_only=False)
        mean_loss(twin, x, TARGETS).backward()  # no business of this watch
        assert_norms(watched, loop(mlp(), x, TARGETS))


def test_hooks_are_removed():
    model, x = mlp(), draw(5, 4)
    watch = memtools.watch(model)
    assert hooks_of(model) == 0
    with watch:
        assert hooks_of(model) > 0
        mean_loss(model, x, TARGETS).backward()
    assert hooks_of(model) == 0
    assert not _get_current_function_mode_stack()
    assert_norms(watch, loop(model, x, TARGETS))
    expected = watch.parameter_gradient_norms()
    mean_loss(model, draw(3, 4), TARGETS[:3]).backward()
    assert torch.equal(watch.parameter_gradient_norms(), expected)
    with watch:  # once more
        mean_loss(model, x[:3], TARGETS[:3]).backward()
    assert_norms(watch, loop(model, x[:3], TARGETS[:3]))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["forward", "backward", "loss"])
def test_after_an_exception(place, error):
    model, trap, x, failing = mlp(), nn.Identity(), draw(5, 4), ["forward", "backward", "loss"]
    expected = loop(model, x, TARGETS)
    model.insert(1, trap)

    def fail(at):
        if at == place and failing:
            raise error

    trap.register_forward_hook(lambda *_: fail("forward"))
    trap.register_full_backward_hook(lambda *_: fail("backward"))

    def step():
        loss = mean_loss(model, x, TARGETS)
        fail("loss")
        loss.backward()

    before, watch = hooks_of(model), memtools.watch(model)
    with pytest.raises(error), watch:
        step()
    modes = len(_get_current_function_mode_stack())
    for _ in range(modes):
        _pop_mode()  # not into the other tests
    assert modes == 0
    assert hooks_of(model) == before
    failing.clear()
    with watch:
        step()
        assert_norms(watch, expected)


def test_a_failed_pass_within_the_block_is_passed_over():
    def forward(m, x):
        if x.isnan().any():
            raise ZeroDivisionError
        return m.body(x)

    model, x = Net(forward, body=mlp()), draw(5, 4)
    expected = loop(model, x, TARGETS)
    with memtools.watch(model) as watched:
        with pytest.raises(ZeroDivisionError):
            model(x * math.nan)
        assert not _get_current_function_mode_stack()
        mean_loss(model, x, TARGETS).backward()
        assert_norms(watched, expected)


def test_training_goes_on_with_a_model_for_one_size_of_batches():
    """It keeps a state for every example of the last batch."""

    def forward(m, x):
        hidden = torch.tanh(m.fc(torch.cat([x, m.state], 1)))
        m.state = hidden.detach()
        return m.head(hidden)

    model = Net(forward, fc=nn.Linear(8, 4), head=nn.Linear(4, 3))
    model.state = torch.zeros(5, 4).double()
    with memtools.watch(model) as watched:
        for _ in range(2):
            mean_loss(model, draw(5, 4), TARGETS).backward()
    assert watched.input_gradient_norms().shape == (5,)


# What is refused.


def test_arguments_that_are_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        memtools.watch(mean_loss)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum"'):
        memtools.watch(mlp(), reduction="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="model is compiled"):
        memtools.watch(torch.compile(mlp(), backend="eager"))  # pyright: ignore
    with pytest.raises(ValueError, match="model is compiled"):
        memtools.watch(nn.Sequential(torch.compile(mlp(), backend="eager")))  # pyright: ignore


def test_a_model_compiled_in_place_is_refused():
    model = mlp()
    model.compile(backend="eager")
    with (
        pytest.raises((ValueError, RuntimeError), match=r"watch|set_stance"),
        memtools.watch(model),
    ):
        model(draw(5, 4))


def test_entered_twice():
    watch = memtools.watch(mlp())
    with watch, pytest.raises(RuntimeError, match="entered already"):
        watch.__enter__()


def test_batch_norm_in_train_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with memtools.watch(model), pytest.raises(ValueError, match="couples the examples"):
        model(draw(5, 4))
    assert not _get_current_function_mode_stack()


def test_coupled_examples():
    model = Net(lambda m, x: m.body(x - x.mean(0)), body=mlp())
    with memtools.watch(model) as watched:
        mean_loss(model, draw(5, 4), TARGETS).backward()
    for read in (watched.input_gradient_norms, watched.parameter_gradient_norms):
        with pytest.raises(ValueError, match="couples the examples"):
            read()
    assert hooks_of(model) == 0


def test_reading_too_early():
    model, x = mlp(), draw(5, 4)
    with memtools.watch(model) as watched:
        for _ in range(2):
            for read in (watched.input_gradient_norms, watched.parameter_gradient_norms):
                with pytest.raises(RuntimeError, match="no backward pass was seen yet"):
                    read()
            model(x)


def test_a_backward_pass_that_does_not_reach_the_inputs():
    model, x = Net(lambda m, x: m.body(x.detach()), body=mlp()), draw(5, 4)
    with memtools.watch(model) as watched:
        mean_loss(model, x, TARGETS).backward()
        expected = memtools.parameter_gradient_norms(model, x, TARGETS)
        torch.testing.assert_close(watched.parameter_gradient_norms(), expected)
        with pytest.raises(RuntimeError, match="did not reach the inputs"):
            watched.input_gradient_norms()


def test_checkpoints_that_hide_the_weights():
    model = Net(
        lambda m, x: m.two(checkpoint(m.one, torch.tanh(m.one(x)), use_reentrant=True)),
        one=nn.Linear(4, 4),
        two=nn.Linear(4, 3),
    )
    with memtools.watch(model) as watched:
        mean_loss(model, draw(5, 4), TARGETS).backward()  # the training goes on
        with pytest.raises(ValueError, match="use_reentrant=False"):
            watched.parameter_gradient_norms()


def test_dropout_beside_a_recurrent_layer():
    """Its masks cannot be drawn again; the training does not suffer."""
    model = lstm(lambda m, x: m.head(F.dropout(m.lstm(x)[0][:, -1], 0.5, m.training)))
    with memtools.watch(model) as watched:
        mean_loss(model, draw(5, 7, 4), TARGETS).backward()
        with pytest.raises(ValueError, match="cannot be drawn again"):
            watched.parameter_gradient_norms()
        assert watched.input_gradient_norms().shape == (5,)


# Memory.


def count_tensors():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


class Leaky(nn.Module):
    """Keeps weak references to its activations, outside of itself."""

    def __init__(self, refs, detach=False):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3)
        self.note = lambda h: refs.append(weakref.ref(h))
        self.detach = detach

    def forward(self, x):
        hidden = torch.tanh(self.one(x))
        self.note(hidden)
        if len(x) == 4:
            raise ZeroDivisionError
        out = self.two(hidden)
        return out.detach() if self.detach else out


@pytest.mark.parametrize("way", ["trained", "not trained", "detached", "fails", "one leaf"])
def test_nothing_is_kept(way):
    refs = []
    model = Leaky(refs, detach=way == "detached")
    x = draw(4 if way == "fails" else 5, 4).float().requires_grad_(way == "one leaf")
    with memtools.watch(model) as watched:
        counts = []
        for _ in range(3):
            for _ in range(20):
                with contextlib.suppress(ZeroDivisionError):
                    output = model(x)
                    if way in ("trained", "one leaf"):
                        F.cross_entropy(output, TARGETS).backward()
                        watched.parameter_gradient_norms()
                    del output
            counts.append(count_tensors())
        assert counts[-1] - counts[0] < 40  # in 40 steps, not one tensor for each
        gc.collect()
        alive = sum(ref() is not None for ref in refs)
        assert alive <= 1 if way in ("trained", "one leaf") else alive == 0
    del watched
    gc.collect()
    assert all(ref() is None for ref in refs)


def test_a_new_pass_frees_the_last():
    refs = []
    model, x = Leaky(refs), draw(5, 4).float()
    with memtools.watch(model) as watched:
        for _ in range(3):
            F.cross_entropy(model(x), TARGETS).backward()
        gc.collect()
        assert sum(ref() is not None for ref in refs) <= 1
        watched.parameter_gradient_norms()
        gc.collect()
        assert all(ref() is None for ref in refs)


@pytest.mark.parametrize("way", ["read", "not read", "kept"])
def test_memory_does_not_wait_for_the_garbage_collector(way):
    """It counts objects: those of a step are few, and may hold gigabytes."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def step():
        x = draw(5, 4).float()
        with memtools.watch(model) as watched:
            F.cross_entropy(model(x), TARGETS).backward()
            if way == "read":
                watched.parameter_gradient_norms()
                watched.input_gradient_norms()
        return watched if way == "kept" else None

    step()
    gc.collect()
    gc.disable()
    try:
        kept = [step() for _ in range(5)]
        del kept
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        held = [o for o in gc.garbage if isinstance(o, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert held == []


# Several processes.

SCRIPT = """
import gc, json, sys
from datetime import timedelta
import torch
from torch import distributed, nn
from torch.nn import functional as F
import memtools

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
    timeout=timedelta(seconds=60),
)


def train(watching):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    watch = memtools.watch(wrapped)
    if watching:
        watch.__enter__()
    found = []
    draw = torch.Generator().manual_seed(rank)
    for _ in range(20):
        n = 5 if rank == 0 else 3
        x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
        y = torch.randint(3, (n,), generator=draw)
        if watching:
            expected = memtools.gradient_norms(model, x, y)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        if watching:
            pairs = [
                (watch.input_gradient_norms(), expected.inputs),
                (watch.parameter_gradient_norms(), expected.parameters),
            ]
            found.append([[a.tolist(), b.tolist()] for a, b in pairs])
        optimizer.step()
    if watching:
        watch.__exit__(None, None, None)
    return nn.utils.parameters_to_vector(model.parameters()).tolist(), found


plain, watched = train(False), train(True)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump({"plain": plain[0], "watched": watched[0], "norms": watched[1]}, file)
gc.collect()  # a reducer that outlives its process group ends the process
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="torch was built without distributed training over gloo",
)
def test_each_process_has_the_norms_of_its_own_examples(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "train.py")]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["plain"] == first["watched"] == second["plain"] == second["watched"]
    for result, n in ((first, 5), (second, 3)):
        assert len(result["norms"]) == 20
        for step in result["norms"]:
            for found, expected in step:
                assert len(found) == n
                assert found == pytest.approx(expected, rel=1e-10)


def test_data_parallel_without_devices():
    model, x = mlp(), draw(5, 4)
    wrapped = nn.DataParallel(model)
    with memtools.watch(wrapped) as watched:
        mean_loss(wrapped, x, TARGETS).backward()
    assert_norms(watched, loop(model, x, TARGETS))
