"""Whatever is reported is in the box exactly, and truly of another class."""

import pytest
import torch
from torch import nn

from memtools import find_critical

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def searched(networks):
    return networks.search


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_trained_networks(method, bounds, trained, networks, searched):
    model, inputs, radius = trained
    search = searched(method, model, inputs, radius, bounds=bounds, batch_size=13)
    networks.assert_sound(model, inputs, search, radius, bounds or (-torch.inf, torch.inf))
    assert 0 < search.ratio < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["MLP", "CNN", "residual"])
def test_every_dtype(method, dtype, name, networks, searched):
    model, inputs, radius = networks.trained(name)
    model, inputs = model.to(dtype), inputs.to(dtype)
    search = searched(method, model, inputs, 2 * radius)
    networks.assert_sound(model, inputs, search, 2 * radius)
    assert search.is_critical.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("radius", [0.1, 1 / 3, 0.7071067, 1e-3, 3e-5])
@pytest.mark.parametrize("offset", [0.0, -7.3, 1000.0])
def test_no_rounding_error_leaves_the_box(method, dtype, radius, offset, networks, searched):
    """Where a radius is a few units in the last place of the inputs, or less than one."""
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(30, 7, generator=generator) + offset).to(dtype)
    # Whichever way a coordinate moves, the class changes.
    centre = inputs.double()

    class Moved(nn.Module):
        def forward(self, x):
            distance = (x.double()[:, None] - centre).abs().sum(2).amin(1)
            away = distance + 1e-9 * x.double().sum(1)
            return torch.stack([torch.zeros_like(away), away - 1e-3 * radius], 1)

    search = searched(method, Moved(), inputs, radius)
    width = torch.as_tensor(radius, dtype=dtype)
    assert ((search.points - inputs).abs() <= width).all()
    assert torch.equal(search.points[~search.is_critical], inputs[~search.is_critical])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_channel_stays_in_its_own_box(method, dtype, networks, searched):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(40, 3, 2, 2, generator=generator).to(dtype)
    inputs[:5], inputs[5:10] = 0, 1  # at the bounds
    radius = torch.tensor([0.0, 0.1, 0.3]).reshape(3, 1, 1)
    low, high = torch.tensor([0.0, -0.05, 0.0]).reshape(3, 1, 1), torch.ones(3, 1, 1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = networks.mlp(12).to(dtype)
    search = searched(method, model, inputs, radius, bounds=(low, high))
    networks.assert_sound(model, inputs, search, radius, (low, high))
    assert torch.equal(search.points[:, 0], inputs[:, 0])
    assert search.is_critical.any()


def test_inputs_beside_the_bounds_by_rounding_stay_where_they_are(method, searched):
    """A normalised black pixel may miss the normalised bound by a rounding error."""
    low, high = torch.tensor(-0.42421296), torch.tensor(2.8214867)
    below = torch.nextafter(low, torch.tensor(-1.0))
    inputs = torch.stack([below, low, high, torch.tensor(0.0)])[:, None].repeat(1, 4)
    model = nn.Linear(4, 2)
    search = searched(method, model, inputs, 0.1, bounds=(low, high))
    assert ((search.points - inputs).abs() <= torch.tensor(0.1)).all()
    assert (search.points >= torch.minimum(low, inputs)).all()
    assert (search.points <= high).all()


def repeated(x):
    return torch.stack([x, x], 2).flatten(1)


def noisy(x):
    """Every logit twice, the second one off by a unit in the last place, up or down."""
    up = (x * 1e4).frac() > 0
    eps = torch.finfo(x.dtype).eps
    return torch.stack([x, x * torch.where(up, 1 + eps, 1 - eps / 2)], 2).flatten(1)


class Summed(nn.Module):
    """Two logits that are one number, summed in two orders, and perhaps one far behind."""

    def __init__(self, behind):
        super().__init__()
        self.weight, self.behind = nn.Parameter(torch.linspace(-3, 5, 40)), behind

    def forward(self, x):
        products = x * self.weight
        by_parts = products.reshape(-1, 4, 10).sum(2).sum(1)
        logits = [products.cumsum(1)[:, -1], by_parts, by_parts - 100]
        return torch.stack(logits[: 3 if self.behind else 2], 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("after", [repeated, noisy])
def test_ties_are_no_flips(method, dtype, after, searched):
    """Each class has a twin whose logit is the same, or the same but for rounding."""

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x):
            return after(torch.cat([self.layer(x), self.layer(x) * 0 - 50], 1))

    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    search = searched(method, Twins().to(dtype), inputs, 0.2)
    assert search.ratio == 0
    assert torch.equal(search.points, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("behind", [False, True])
def test_two_orders_of_a_sum_are_no_flips(method, behind, dtype, searched):
    """Also where the terms cancel, so that the logits are far smaller than what was rounded."""
    inputs = torch.randn(60, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    search = searched(method, Summed(behind).to(dtype), inputs, 0.2)
    assert search.ratio == 0


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_model_has_no_critical_examples(method, value, searched):
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x[:, :1] + torch.tensor([value, value, value - 1])

    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    search = searched(method, Constant(), inputs, 0.5)
    assert search.ratio == 0
    assert (search.predicted == 0).all()


def test_an_example_on_a_boundary_has_the_first_of_its_classes(method):
    """From an exact tie any step leads away; only the one towards the other class is a flip."""
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[1.0], [-1.0]])
    inputs = torch.tensor([[0.0], [4.0]])
    search = find_critical(model, inputs, radius=0.5, method=method)
    assert search.predicted.tolist() == [0, 0]
    assert search.is_critical.tolist() == [True, False]
    assert -0.5 <= search.points[0, 0] < 0


@pytest.mark.parametrize("lead", [0.5, 2.0])
def test_a_lead_counts_from_the_bound_on(method, lead):
    """A flip with half of the lead that rounding can explain is none, one with twice of it is."""

    class Ahead(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.layer, self.size = nn.Linear(4, 4), size
            self.layer.weight.data = torch.eye(4)
            self.layer.bias.data.zero_()

        def forward(self, x):
            z = self.layer(x)
            # Steep below zero, and ahead by the size above it.
            up, down = z[:, 0].clamp(min=0), z[:, 0].clamp(max=0)
            rest = 1 + 100 * down + torch.where(up > 0, self.size, 0.0)
            return torch.stack([1 + 0 * z[:, 1], rest], 1)

    inputs = torch.full((40, 4), -0.01) - torch.arange(40.0)[:, None] * 7e-4
    bound = find_critical(Ahead(1.0), inputs, radius=0.04, method=method).rounding
    assert bound > 0
    largest = float(Ahead(1.0)(inputs).detach().abs().max())
    search = find_critical(Ahead(lead * bound * largest), inputs, radius=0.04, method=method)
    assert search.rounding == pytest.approx(bound, rel=0.5)
    assert search.is_critical.all() == (lead > 1)
    assert search.is_critical.any() == (lead > 1)


def test_autocast(method, networks, searched):
    """Rounding is that of bfloat16, and a flip is one in float64 as well."""
    model, inputs, radius = networks.trained("CNN")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        search = searched(method, model, inputs, 2 * radius)
    plain = searched(method, model, inputs, 2 * radius)
    assert search.rounding > 100 * plain.rounding
    assert search.is_critical.any()
    found = search.is_critical
    with torch.no_grad():
        exact = model.double()(search.points[found].double())
    lead, _ = networks.lead_over(exact, search.predicted[found])
    assert (lead > 0).all()
    assert ((search.points - inputs).abs() <= torch.tensor(2 * radius)).all()
