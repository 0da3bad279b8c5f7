"""LASS against a loop over single examples, with the same noise."""

import copy

import pytest
import torch
from memtools_kernels import box_noise
from torch import nn

from memtools import find_critical
from memtools.critical.streams import seed_of, stream_keys

STEPS = 6
ZOO = [
    "conv and GroupNorm",
    "conv and BatchNorm in eval",
    "in-place ReLU",
    "raw parameters",
    "tied weights",
    "LSTM",
    "attention",
    "transformer",
    "weight_norm",
    "spectral_norm",
    "record with logits",
    "hooked",
    "data-dependent branch",
    "custom autograd function",
    "memtools MLP",
    "memtools TinyMLP",
    "memtools SmallAlexNet",
]


def noise_of(inputs, steps, seed):
    """The noise of each step, for each example."""
    keys = stream_keys(inputs, seed_of(torch.Generator().manual_seed(seed)))
    numbers = [torch.full_like(keys, step) for step in range(steps)]
    d = inputs[0].numel()
    return [box_noise(keys, step, d).reshape(inputs.shape).double() for step in numbers]


def by_loop(oracles, model, inputs, radius, *, seed=0, steps=STEPS, at="moving", bounds=None):
    """First steps, points and distances from ties, in float64 for inputs of any dtype."""
    leads = []
    low, high = bounds or (None, None)
    first_step, points = oracles.lass(
        copy.deepcopy(model).eval().double(),
        inputs.double(),
        noise_of(inputs, steps, seed),
        alpha=radius * 0.25 / 0.3,
        beta=radius * 0.2 / 0.3,
        radius=radius,
        max_steps=steps,
        gradient_at=at,
        low=low,
        high=high,
        leads=leads,
    )
    return first_step, points, torch.tensor(leads)


def searched(model, inputs, radius, *, seed=0, steps=STEPS, at="moving", **options):
    return find_critical(
        model,
        inputs,
        radius=radius,
        max_steps=steps,
        gradient_at=at,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("at", ["moving", "start"])
def test_any_model_agrees_with_the_loop(oracles, zoo, name, at):
    model, inputs, _ = zoo.build(name, torch.float64)
    inputs = torch.cat([inputs, inputs.flip(-1) * 0.7])
    for radius in (0.05, 0.4):
        first_step, points, _ = by_loop(oracles, model, inputs, radius, at=at)
        # In batches of three, those that leave are replaced by others.
        search = searched(model, inputs, radius, at=at, batch_size=3)
        assert torch.equal(search.first_step, first_step)
        torch.testing.assert_close(search.points, points, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 5), (1, 2, 1, 3)])
@pytest.mark.parametrize("batch_size", [1, 3, 25, 60])
def test_odd_shapes_and_batch_sizes(oracles, shape, batch_size):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(25, *shape, generator=generator).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        body = nn.Sequential(nn.Linear(max(1, inputs[0].numel()), 9), nn.Tanh(), nn.Linear(9, 3))
    flat = nn.Flatten() if shape else nn.Unflatten(0, (-1, 1))
    model = nn.Sequential(flat, body.double())
    first_step, points, _ = by_loop(oracles, model, inputs, 0.3, seed=3)
    search = searched(model, inputs, 0.3, seed=3, batch_size=batch_size)
    assert torch.equal(search.first_step, first_step)
    torch.testing.assert_close(search.points, points, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("at", ["moving", "start"])
@pytest.mark.parametrize("bounded", [False, True])
def test_channels_of_their_own_radius(oracles, at, bounded):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(30, 3, 2, 2, generator=generator).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    radius = torch.tensor([0.05, 0.2, 0.3]).double().reshape(3, 1, 1)
    bounds = (0.0, 1.0) if bounded else None
    model = model.double()
    first_step, points, _ = by_loop(oracles, model, inputs, radius, at=at, bounds=bounds)
    search = searched(model, inputs, radius, at=at, bounds=bounds, batch_size=4)
    assert torch.equal(search.first_step, first_step)
    torch.testing.assert_close(search.points, points, rtol=1e-10, atol=1e-12)
    assert 0 < search.ratio < 1


@pytest.mark.parametrize("seed", [0, 1])
def test_float32_agrees_but_for_near_ties(oracles, trained, seed):
    model, inputs, radius = trained
    first_step, _, leads = by_loop(oracles, model, inputs, radius, seed=seed)
    search = searched(model, inputs, radius, seed=seed, batch_size=16)
    differs = search.first_step != first_step
    assert bool((leads[differs] <= search.rounding).all())
    assert differs.sum() <= 1
    assert 0 < search.ratio < 1


def test_a_residual_network_of_torchvision(oracles, gradient_zoo):
    model, inputs, _, _ = gradient_zoo.build("torchvision ResNet-18", torch.float64, 4)
    first_step, points, _ = by_loop(oracles, model, inputs, 0.02, steps=3)
    search = searched(model, inputs, 0.02, steps=3, batch_size=3)
    assert torch.equal(search.first_step, first_step)
    torch.testing.assert_close(search.points, points, rtol=1e-10, atol=1e-12)


def test_a_model_of_transformers(oracles, gradient_zoo):
    """On its embeddings, which is where tokens have neighbours."""
    model, tokens, _, _ = gradient_zoo.build("transformers BERT", torch.float64, 6)
    name = "bert.embeddings.word_embeddings"
    with torch.no_grad():
        inputs = model.get_submodule(name)(tokens)

    class OnEmbeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(inputs_embeds=x)

    keys = stream_keys(tokens, seed_of(None))
    noise = [
        box_noise(keys, torch.full_like(keys, k), inputs[0].numel()).reshape(inputs.shape).double()
        for k in range(STEPS)
    ]
    for radius in (0.005, 0.02):
        first_step, points = oracles.lass(
            OnEmbeddings(), inputs, noise, alpha=radius * 0.25 / 0.3, beta=radius * 0.2 / 0.3,
            radius=radius, max_steps=STEPS, gradient_at="moving",
        )  # fmt: skip
        search = find_critical(
            model, tokens, radius=radius, max_steps=STEPS, embedding=name, batch_size=4
        )
        assert torch.equal(search.first_step, first_step)
        torch.testing.assert_close(search.points, points, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1, 2**6, 2**10])
def test_a_sure_model_is_searched_like_an_unsure_one(dtype, factor):
    """Where softmax gives 1 and 0, the cross-entropy has a direction to climb all the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 2, bias=False).to(dtype)
        inputs = torch.randn(40, 6).to(dtype)
    unsure = searched(model, inputs, 0.3)
    model.weight.data *= factor
    sure = searched(model, inputs, 0.3)
    assert torch.equal(sure.first_step, unsure.first_step)
    assert 0 < sure.ratio < 1
