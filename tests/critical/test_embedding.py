"""Searches in the space of a module's outputs: of the embeddings of tokens, for instance."""

from typing import Any

import pytest
import torch
from torch import nn

from memtools import critical_radius, critical_sample_ratio, find_critical, linear_reach

VOCABULARY, LENGTH, WIDTH, CLASSES = 11, 4, 3, 4


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.lookup = nn.Embedding(VOCABULARY, WIDTH)
        self.rest = nn.Sequential(
            nn.Flatten(), nn.Linear(LENGTH * WIDTH, 16), nn.Tanh(), nn.Linear(16, CLASSES)
        )

    def forward(self, ids):
        return self.rest(self.lookup(ids))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens().double()


def batch(n=50):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (n, LENGTH), generator=draw)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("by", ["name", "module"])
def test_is_a_search_of_the_rest_of_the_network(method, by, dtype, networks):
    model, ids = network(), batch().to(dtype)
    embedding = "lookup" if by == "name" else model.lookup
    # Without chance: streams are named by the tokens here, and by their embeddings there.
    options: dict[str, Any] = {"noise": 0} if method == "lass" else {"max_steps": 4}
    options |= {"radius": 0.3, "method": method}
    search = find_critical(model, ids, embedding=embedding, batch_size=16, **options)
    embedded = model.lookup(ids).detach()
    expected = find_critical(model.rest, embedded, batch_size=16, **options)
    assert search.points.shape == (50, LENGTH, WIDTH)
    assert torch.equal(search.is_critical, expected.is_critical)
    assert torch.equal(search.first_step, expected.first_step)
    torch.testing.assert_close(search.points, expected.points)
    networks.assert_sound(model.rest, embedded, search, 0.3)
    assert 0 < search.ratio < 1
    assert len(model.lookup._forward_hooks) == 0


def test_bounds_and_radius_are_in_its_space(method):
    model, ids = network(), batch()
    embedded = model.lookup(ids).detach()
    low, high = embedded.amin((0, 1)), embedded.amax((0, 1))
    radius = torch.tensor([0.0, 0.5, 1.0])
    search = find_critical(
        model, ids, radius=radius, bounds=(low, high), method=method, embedding="lookup"
    )
    assert search.is_critical.any()
    assert ((low <= search.points) & (search.points <= high)).all()
    assert torch.equal(search.points[..., 0], embedded[..., 0])
    assert ((search.points - embedded).abs() <= radius).all()


def test_the_other_functions():
    model, ids = network(), batch()
    embedded = model.lookup(ids).detach()
    ratio = critical_sample_ratio(model, ids, radius=0.3, embedding="lookup")
    assert ratio == find_critical(model, ids, radius=0.3, embedding=model.lookup).ratio
    torch.testing.assert_close(
        linear_reach(model, ids, radius=0.3, embedding="lookup"),
        linear_reach(model.rest, embedded, radius=0.3),
    )
    smallest = critical_radius(model, ids, [0.1, 0.3, 1.0], embedding="lookup")
    assert smallest.shape == (50,)
    assert len(smallest.unique()) >= 3


def test_order_and_batch_size_change_nothing(method):
    model, ids = network(), batch()
    options = {"radius": 0.3, "method": method, "embedding": "lookup"}
    whole = find_critical(model, ids, **options)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    other = find_critical(model, ids[order], batch_size=7, **options)
    assert torch.equal(whole.first_step[order], other.first_step)
    torch.testing.assert_close(whole.points[order], other.points)


def test_more_examples_than_are_embedded_at_a_time():
    model, ids = network(), batch(2500)
    search = find_critical(model, ids, radius=0.1, max_steps=1, embedding="lookup")
    assert torch.equal(search.predicted, model(ids).argmax(1))
    found = search.is_critical
    assert torch.equal(search.points[~found], model.lookup(ids).detach()[~found])


def test_a_layer_of_a_model_of_images(method, networks):
    """Its outputs are searched, though the inputs themselves could be."""
    model, inputs, _ = networks.trained("MLP")
    hidden = model[:3](inputs).detach()
    options: dict[str, Any] = {"noise": 0} if method == "lass" else {"max_steps": 4}
    options |= {"radius": 0.3, "method": method, "batch_size": 16}
    search = find_critical(model, inputs, embedding="2", **options)
    expected = find_critical(model[3:], hidden, **options)
    assert torch.equal(search.is_critical, expected.is_critical)
    assert search.points.shape == hidden.shape


def test_no_proof_about_the_wrong_box():
    """The box is that of a hidden layer, which happens to be as wide as the inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, head = nn.Linear(4, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, head).double()
    first.weight.data.zero_()  # constant in its inputs, and not in what the layer returns
    first.bias.data.zero_()
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    truly = find_critical(model, inputs, radius=5.0, embedding="0", method="auto")
    assert truly.is_critical.all()
    search = find_critical(
        model, inputs, radius=5.0, embedding="0", certify=True,
        max_steps=1, step_size=1e-9, noise=0,
    )  # fmt: skip
    assert not search.is_critical.any()  # this one does not look
    assert search.is_certified is not None
    assert not search.is_certified.any()


def test_passes_through_the_embedding_count():
    model, ids = network(), batch(30)
    rows, backward = [], []
    model.rest.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    model.rest.register_full_backward_hook(lambda m, gi, go: backward.append(len(go[0])))
    for method in ("lass", "auto"):
        rows.clear()
        backward.clear()
        search = find_critical(model, ids, radius=0.3, embedding="lookup", method=method)
        assert search.evaluations == sum(rows) + sum(backward)


class Twice(Tokens):
    def forward(self, ids):
        return self.rest(self.lookup(ids) + self.lookup(ids.flip(1)))


class Records(Tokens):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, ids):
        return self.rest(self.pair(self.lookup(ids))[0])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Unused(Tokens):
    def __init__(self):
        super().__init__()
        self.other = nn.Embedding(3, 3)


@pytest.mark.parametrize(
    ("build", "embedding", "text"),
    [
        (Tokens, "nowhere", r"embedding must be a module of the model or its name, got 'nowhere'"),
        (Tokens, nn.Embedding(3, 3), r"embedding must be a module of the model or its name, got E"),
        (
            Twice,
            "lookup",
            r"called once in a forward pass .*, got Embedding with 2 calls in 1 pass",
        ),
        (Records, "pair", r"called once .* returns a tensor .*, got Pair with 1 calls"),
        (Unused, "other", r"called once in a forward pass .*, got Embedding with 0 calls"),
    ],
)
def test_what_is_no_embedding(method, build, embedding, text):
    model = build()
    with pytest.raises(ValueError, match=text):
        find_critical(model, batch(), radius=0.1, embedding=embedding, method=method)
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


def test_tokens_without_an_embedding(method):
    text = r"inputs must be real floating point, got torch\.int64, .* pass token embeddings"
    with pytest.raises(ValueError, match=text):
        find_critical(network(), batch(), radius=0.1, method=method)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_the_hook_is_removed_when_the_model_fails(method, error):
    model, calls = network(), []

    def fail(module, args, output):
        calls.append(len(output))
        if len(calls) == 12:
            raise error

    model.rest.register_forward_hook(fail)
    with pytest.raises(error):
        find_critical(model, batch(), radius=0.3, embedding="lookup", method=method)
    assert len(calls) == 12
    assert len(model.lookup._forward_hooks) == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
