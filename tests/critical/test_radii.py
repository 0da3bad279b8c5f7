"""Smallest critical radii, and the reach of the slopes."""

import math

import pytest
import torch
from torch import nn

from memtools import critical_radius, find_critical, linear_reach

RADII = [0.02, 0.05, 0.1, 0.2, 0.3]


def test_the_first_of_separate_searches(trained):
    model, inputs, _ = trained
    model, inputs = model.double(), inputs.double()
    smallest = critical_radius(model, inputs, RADII, bounds=(0.0, 1.0))
    expected = torch.full((len(inputs),), math.inf)
    for radius in reversed(RADII):
        search = find_critical(model, inputs, radius=radius, bounds=(0.0, 1.0), method="auto")
        expected[search.is_critical] = radius
    assert torch.equal(smallest, expected)
    assert smallest.dtype == torch.float32
    assert len(smallest.unique()) >= 2


def test_order_of_the_radii_and_more_of_them(trained):
    model, inputs, _ = trained
    model, inputs = model.double(), inputs.double()
    smallest = critical_radius(model, inputs, RADII)
    assert torch.equal(smallest, critical_radius(model, inputs, [*RADII[::-1], 0.1]))
    assert torch.equal(smallest, critical_radius(model, inputs, tuple(RADII)))
    fewer = critical_radius(model, inputs, [0.05, 0.2])
    assert (smallest <= fewer).all()
    assert torch.isin(fewer, torch.tensor([0.05, 0.2, math.inf])).all()
    # Boxes nest, so shares grow.
    shares = [(smallest <= radius).float().mean() for radius in RADII]
    assert shares == sorted(shares)


def test_linear_model_in_closed_form():
    model = nn.Linear(1, 2).double()
    model.weight.data = torch.tensor([[1.0], [-1.0]]).double()
    model.bias.data.zero_()
    inputs = torch.tensor([[0.05], [-0.15], [0.25], [5.0]]).double()
    assert critical_radius(model, inputs, [0.1, 0.2, 0.3]).tolist() == pytest.approx(
        [0.1, 0.2, 0.3, math.inf]
    )


def test_a_radius_is_not_rounded_up():
    """0.1 in float32 is more than 0.1, and this boundary lies between them."""
    model = nn.Linear(1, 2).double()
    model.weight.data = torch.tensor([[1.0], [-1.0]]).double()
    model.bias.data.zero_()
    inputs = torch.tensor([[0.1 + 1e-9], [5.0]], dtype=torch.float64)
    assert critical_radius(model, inputs, [0.1]).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("unit", [0.1, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0, 0.2])])
def test_units(unit, networks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = networks.mlp(6).double()
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    smallest = critical_radius(model, inputs, [1, 3], unit=unit)
    assert smallest.isfinite().any()
    for radius in (1, 3):
        box = radius * torch.as_tensor(unit).double()
        search = find_critical(model, inputs, radius=box, method="auto")
        assert torch.equal(search.is_critical, smallest <= radius)


def test_the_few_that_are_left_may_be_alike():
    """Only dark examples are left for the second radius, which is wider than what they span."""
    model = nn.Linear(2, 2)
    model.weight.data, model.bias.data = torch.eye(2), torch.tensor([0.0, -0.9])
    inputs = torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.0, 0.02], [0.0, 0.95], [0.1, 0.95]])
    smallest = critical_radius(model, inputs, [0.1, 0.3])
    assert smallest[3:].isfinite().all()
    assert (smallest[:3] == math.inf).all()


def test_a_time_limit_is_for_all_radii(networks):
    model, inputs, _ = networks.trained("MLP")
    smallest = critical_radius(model, inputs, RADII, time_limit=1e-9, batch_size=8)
    assert (smallest == math.inf).sum() > (critical_radius(model, inputs, RADII) == math.inf).sum()


def test_streams_are_those_of_the_generator(networks):
    model, inputs, _ = networks.trained("MLP")
    generator = torch.Generator().manual_seed(4)
    state = generator.get_state()
    first = critical_radius(model, inputs, RADII, generator=generator)
    generator.set_state(state)
    assert torch.equal(first, critical_radius(model, inputs, RADII, generator=generator))


@pytest.mark.parametrize(
    ("radii", "text"),
    [
        ([], r"radii must be positive numbers, at least one, got \[\]"),
        ([0.1, 0.0], r"radii must be positive numbers"),
        ([-0.1], r"radii must be positive numbers"),
        ([0.1, math.inf], r"radii must be positive numbers"),
        ([math.nan], r"radii must be positive numbers"),
        ([0.2, math.nan, 0.1], r"radii must be positive numbers"),
    ],
)
def test_radii_that_are_none(networks, radii, text):
    model, inputs, _ = networks.trained("MLP")
    with pytest.raises(ValueError, match=text):
        critical_radius(model, inputs, radii)


@pytest.mark.parametrize("call", [critical_radius, linear_reach])
def test_errors_of_the_search_come_through(call, networks):
    model, inputs, _ = networks.trained("MLP")
    options = {"radii": [0.1]} if call is critical_radius else {"radius": 0.1}
    with pytest.raises(ValueError, match=r"inputs is an empty batch, shape \(0, 1, 6, 6\)"):
        call(model, inputs[:0], **options)
    with pytest.raises(TypeError, match=r"inputs must be a tensor, got list"):
        call(model, inputs.tolist(), **options)
    with pytest.raises(TypeError, match=r"inputs must be a tensor, got ndarray"):
        call(model, inputs.numpy(), **options)
    with pytest.raises(ValueError, match=r"inputs must have shape \(n, \.\.\.\), got a scalar"):
        call(model, inputs[0, 0, 0, 0], **options)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        call(lambda x: x, inputs, **options)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        call(model, inputs, batch_size=0, **options)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.2)])
@pytest.mark.parametrize("radius", [0.2, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])])
def test_reach_of_linear_models_in_closed_form(bounds, radius):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 4).double()
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double().clamp(-1, 1.2)
    low, high = bounds or (-math.inf, math.inf)
    expected = []
    for x in inputs:
        logits = model(x).detach()
        k, reaches = int(logits.argmax()), []
        for c in {0, 1, 2, 3} - {int(logits.argmax())}:
            slope = model.weight[c].detach() - model.weight[k].detach()
            top, bottom = (x + radius).clamp(max=high), (x - radius).clamp(min=low)
            room = torch.where(slope > 0, top - x, x - bottom)
            reaches.append(float((slope.abs() * room).sum() / (logits[k] - logits[c])))
        expected.append(max(reaches))
    reach = linear_reach(model, inputs, radius=radius, bounds=bounds)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(reach, expected, rtol=1e-10, atol=0)
    search = find_critical(model, inputs, radius=radius, bounds=bounds, method="auto")
    assert torch.equal(search.is_critical, reach > 1)


def test_reach_does_not_depend_on_the_batch_size(trained):
    model, inputs, radius = trained
    model, inputs = model.double(), inputs.double()
    reach = linear_reach(model, inputs, radius=radius)
    assert reach.shape == (60,)
    for batch_size in (1, 7, 1000):
        parts = linear_reach(model, inputs, radius=radius, batch_size=batch_size)
        torch.testing.assert_close(parts, reach, rtol=1e-10, atol=0)
    # Twice the box, twice the reach.
    torch.testing.assert_close(linear_reach(model, inputs, radius=2 * radius), 2 * reach)


def test_no_room_is_no_reach_and_no_slope_says_nothing():
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model.bias.data.zero_()
    # The first is at the bound that the slope points to.
    inputs = torch.tensor([[0.1, 0.5], [0.2, 0.5], [0.9, 0.5]])
    reach = linear_reach(model, inputs, radius=0.05, bounds=(0.1, 1.0))
    assert reach[0] == 0
    assert reach[1:].tolist() == pytest.approx([0.25, 0.05 / 0.9])
    assert (linear_reach(model, inputs, radius=0.0) == 0).all()
    model.weight.data.zero_()
    model.bias.data[0] = 1.0
    assert (linear_reach(model, inputs, radius=0.05) == math.inf).all()


def test_scalar_examples():
    class Scalar(nn.Module):
        def forward(self, x):
            return torch.stack([x, -x], 1)

    inputs = torch.tensor([0.05, -0.2, 0.5])
    assert linear_reach(Scalar(), inputs, radius=0.1).tolist() == pytest.approx([2, 0.5, 0.2])
    assert critical_radius(Scalar(), inputs, [0.1, 0.3]).tolist() == pytest.approx(
        [0.1, 0.3, math.inf]
    )
