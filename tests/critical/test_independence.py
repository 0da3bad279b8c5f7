"""What is found of an example depends on neither order, company nor the size of a batch."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import memtools
from memtools.critical.streams import stream_keys, uniform

PER_EXAMPLE = ("is_critical", "points", "predicted", "first_step")


def assert_same(search, other, rows: Any = slice(None)):
    """The rows of one search are those of another, bit for bit but for the points' last digits."""
    for name in ("is_critical", "predicted", "first_step"):
        assert torch.equal(getattr(search, name)[rows], getattr(other, name)), name
    torch.testing.assert_close(search.points[rows], other.points, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def searched(networks):
    return networks.search


@pytest.fixture
def doubled(trained):
    model, inputs, radius = trained
    return model.double(), inputs.double(), radius


@pytest.mark.parametrize(("method", "at"), [("lass", None), ("lass", "start"), ("auto", None)])
def test_order(method, at, doubled, searched):
    model, inputs, radius = doubled
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    whole = searched(method, model, inputs, radius, gradient_at=at)
    shuffled = searched(method, model, inputs[order], radius, gradient_at=at)
    assert_same(whole, shuffled, order)
    assert whole.rounding == shuffled.rounding
    assert 0 < whole.ratio < 1
    if method == "auto":
        assert whole.screening == shuffled.screening


def test_company(method, doubled, searched):
    model, inputs, radius = doubled
    whole = searched(method, model, inputs, radius)
    for rows in (torch.arange(0, 60, 3), torch.tensor([59]), torch.tensor([4, 3, 30])):
        assert_same(whole, searched(method, model, inputs[rows], radius), rows)


def test_duplicates(method, doubled, searched):
    model, inputs, radius = doubled
    rows = torch.arange(60).repeat_interleave(2)[:90]
    whole = searched(method, model, inputs, radius)
    twice = searched(method, model, inputs[rows], radius, batch_size=7)
    assert_same(whole, twice, rows)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size(method, batch_size, doubled, searched):
    model, inputs, radius = doubled
    whole = searched(method, model, inputs, radius)
    assert_same(whole, searched(method, model, inputs, radius, batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_float32_but_for_near_ties(method, batch_size, trained, networks, searched):
    model, inputs, radius = trained
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    whole = searched(method, model, inputs, radius)
    other = searched(method, model, inputs[order], radius, batch_size=batch_size)
    assert torch.equal(whole.predicted[order], other.predicted)
    for a, b, rows in ((whole, other, order), (other, whole, order.argsort())):
        alone = a.is_critical[rows] & ~b.is_critical
        with torch.no_grad():
            logits = model(a.points[rows])
        lead, largest = networks.lead_over(logits, b.predicted)
        bound = max(a.rounding, b.rounding) * largest
        assert bool((lead[alone] <= 2 * bound[alone]).all())


def test_two_calls_are_identical(method, trained, searched):
    model, inputs, radius = trained
    first, second = (searched(method, model, inputs, radius) for _ in range(2))
    for name in PER_EXAMPLE:
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.evaluations == second.evaluations
    assert first.rounding == second.rounding
    assert first.screening == second.screening


def global_states():
    numpy = str(np.random.get_state(legacy=False)["state"])  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy, random.getstate()


def test_global_random_states_are_neither_read_nor_changed(method, trained, searched):
    model, inputs, radius = trained
    searches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        states = global_states()
        searches.append(searched(method, model, inputs, radius))
        assert global_states() == states
    assert torch.equal(searches[0].points, searches[1].points)


def test_seeds_differ_and_a_generator_goes_on(method):
    """The noise of LASS, and the random starts of auto, come from the generator's seed."""

    class Ring(nn.Module):
        """Flat but for a ring around zero: only chance finds it."""

        def forward(self, x):
            inside = (x.square().sum(1) - 1).abs() < 0.3
            flat = torch.stack([torch.ones_like(x[:, 0]), inside.to(x)], 1)
            return flat * torch.tensor([1.0, 2.0]).to(x) + 1e-30 * x[:, :1]

    inputs = 0.05 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([inputs, torch.tensor([[9.0, 9.0], [-9.0, -9.0]])])
    options: dict[str, Any] = {"noise": 0.3, "max_steps": 2} if method == "lass" else {}

    def found(generator):
        options["generator"] = generator
        return memtools.find_critical(Ring(), inputs, radius=1.2, method=method, **options).points

    generator = torch.Generator().manual_seed(0)
    first, second = found(generator), found(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, found(torch.Generator().manual_seed(0)))
    assert torch.equal(first, found(None))
    assert not torch.equal(first, found(torch.Generator().manual_seed(1)))


def test_a_zero_with_a_sign_is_zero(method, doubled, searched):
    model, inputs, radius = doubled
    black = inputs.clone()
    black[:, :, 0] = 0.0
    signed = torch.where(black == 0, -black, black)
    assert signed.signbit().any()
    plain = searched(method, model, black, radius)
    assert_same(plain, searched(method, model, signed, radius))
    assert torch.equal(stream_keys(black, 3), stream_keys(signed, 3))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]
)
def test_streams_are_named_by_the_content(dtype):
    inputs = torch.arange(60).reshape(20, 3).to(dtype)
    keys = stream_keys(inputs, 5)
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 20
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream_keys(inputs[order], 5), keys[order])
    assert torch.equal(stream_keys(inputs.repeat(1, 1)[:1], 5), keys[:1])
    assert not (stream_keys(inputs, 6) == keys).any()
    # Elements in another order are another example.
    assert not (stream_keys(inputs.flip(1), 5) == keys).any()
    assert torch.equal(stream_keys(inputs.T.contiguous().T, 5), keys)


def test_large_examples_are_hashed_like_small_ones():
    """More elements than are hashed at a time, and more examples than one chunk holds."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 40_000, generator=generator)
    keys = stream_keys(inputs, 0)
    assert torch.equal(keys, torch.cat([stream_keys(x, 0) for x in inputs.split(1)]))
    inputs = torch.randn(5000, 20, generator=generator)
    keys = stream_keys(inputs, 0)
    assert torch.equal(keys, torch.cat([stream_keys(x, 0) for x in inputs.split(7)]))


def test_uniform_numbers_are_uniform():
    """Kolmogorov's statistic of 20,000 numbers is below 0.0115 in 99% of all draws."""
    keys = stream_keys(torch.arange(20_000)[:, None], 0)
    numbers = [uniform(keys, purpose).double().sort().values for purpose in (1, 2)]
    expected = (torch.arange(20_000) + 0.5) / 20_000
    for values in numbers:
        assert 0 <= values.min() <= values.max() < 1
        assert (values - expected).abs().max() < 0.0115
    assert not torch.equal(uniform(keys, 1), uniform(keys, 2))


def test_the_model_is_what_it_was(method, trained):
    model, inputs, radius = trained
    before = copy.deepcopy(model.state_dict())
    inputs_before = inputs.clone()
    memtools.find_critical(model.train(), inputs, radius=radius, method=method)
    assert model.training
    assert torch.equal(inputs, inputs_before)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
