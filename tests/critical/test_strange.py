"""What strangers pass: unusual inputs and models, and numbers at the ends of their ranges."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memtools import critical_radius

RADIUS = 0.03
"""Splits the images below."""


@pytest.fixture(scope="module")
def searched(networks):
    return networks.search


def assert_same(search, other):
    for name in ("is_critical", "predicted", "first_step"):
        assert torch.equal(getattr(search, name), getattr(other, name)), name
    torch.testing.assert_close(search.points, other.points)


def images(networks, n=40):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        )
        inputs = torch.rand(n, 3, 6, 6)
    return model.double().eval(), inputs.double()


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "requires_grad": lambda x: x.clone().requires_grad_(),
    "parameter": nn.Parameter,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_inputs(method, layout, networks, searched):
    model, inputs = images(networks)
    expected = searched(method, model, inputs, RADIUS)
    strange = LAYOUTS[layout](inputs)
    version, requires_grad = strange._version, strange.requires_grad
    search = searched(method, model, strange, RADIUS, batch_size=16)
    assert_same(search, expected)
    assert not search.points.requires_grad
    assert (strange._version, strange.requires_grad, strange.grad) == (version, requires_grad, None)
    assert 0 < search.ratio < 1


def test_a_model_in_channels_last(method, networks, searched):
    model, inputs = images(networks)
    expected = searched(method, model, inputs, RADIUS)
    model = model.to(memory_format=torch.channels_last)
    assert_same(searched(method, model, LAYOUTS["channels_last"](inputs), RADIUS), expected)


def test_expanded_inputs(method, networks, searched):
    model, inputs = images(networks)
    for one in inputs[:6].split(1):
        expected = searched(method, model, one, RADIUS)
        search = searched(method, model, one.expand(5, 3, 6, 6), RADIUS)
        assert torch.equal(search.is_critical, expected.is_critical.expand(5))
        torch.testing.assert_close(search.points, expected.points.expand(5, 3, 6, 6))


def test_a_single_example(method, networks, searched):
    model, inputs = images(networks)
    whole = searched(method, model, inputs, RADIUS)
    for k in range(5):
        search = searched(method, model, inputs[k : k + 1], RADIUS)
        assert search.is_critical.tolist() == [bool(whole.is_critical[k])]


def test_scalar_examples(method, searched):
    class Scalar(nn.Module):
        def forward(self, x):
            return torch.stack([x, -x], 1)

    inputs = torch.linspace(-1, 1, 21)[[0, 3, 9, 11, 20]]
    search = searched(method, Scalar(), inputs, 0.15)
    assert search.is_critical.tolist() == [False, False, True, True, False]
    assert search.points.shape == (5,)


def test_nan_in_the_middle(method, networks, searched):
    """Named by its place in the inputs, wherever it stands in a batch."""
    model, inputs = images(networks)
    inputs[29, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"logits of 1 of .* NaN or infinite \(first: example 29"):
        searched(method, model, inputs, RADIUS, batch_size=7)
    inputs[29, 0, 3, 3] = torch.inf
    with pytest.raises(ValueError, match=r"\(first: example 29\)"):
        searched(method, model, inputs, RADIUS, batch_size=7)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_examples_without_elements(method, searched):
    with pytest.raises(ValueError, match="inputs"):
        searched(method, nn.Linear(0, 3), torch.zeros(4, 0), RADIUS)


def test_records_with_logits(method, networks, searched):
    model, inputs = images(networks)

    class Record(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return SimpleNamespace(logits=self.model(x), hidden=x)

    assert_same(searched(method, Record(), inputs, RADIUS), searched(method, model, inputs, RADIUS))


def test_another_precision_than_the_model_is_an_error(method, networks, searched):
    model, inputs = images(networks)
    with pytest.raises(RuntimeError, match=r"(dtype|type)"):
        searched(method, model.float(), inputs, RADIUS)


def test_in_place_on_the_inputs(method, networks, searched):
    class InPlace(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.mul_(2).sub_(1))

    class OutOfPlace(InPlace):
        def forward(self, x):
            return self.model(x * 2 - 1)

    model, inputs = images(networks)
    before = inputs.clone()
    search = searched(method, InPlace(model), inputs, 0.05, batch_size=7)
    assert torch.equal(inputs, before)
    assert_same(search, searched(method, OutOfPlace(model), inputs, 0.05))


def test_dead_units_and_ties_of_max_pool(method, networks, searched):
    """Slopes are zero in most places; a flip is found where one is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Linear(20, 2000)
        wide = nn.Sequential(first, nn.ReLU(), nn.Linear(2000, 3))
    first.bias.data -= 1.2  # most units are dead at most inputs
    inputs = torch.rand(40, 20, generator=torch.Generator().manual_seed(0))
    search = searched(method, wide, inputs, 0.3, bounds=(0.0, 1.0))
    networks.assert_sound(wide, inputs, search, 0.3, (0.0, 1.0))
    assert search.is_critical.any()
    model, images_ = images(networks)
    flat = images_.round()  # many pixels are equal, and all maxima ties
    search = searched(method, model, flat, RADIUS, bounds=(0.0, 1.0))
    networks.assert_sound(model, flat, search, 0.1, (0.0, 1.0))
    assert search.is_critical.any()


def test_a_step_at_a_time(method, networks, searched):
    """Many more examples than a batch holds, most of them done at once."""
    model = nn.Linear(3, 2).double()
    model.weight.data = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]).double()
    model.bias.data.zero_()
    inputs = torch.randn(150, 3, generator=torch.Generator().manual_seed(0)).double()
    search = searched(method, model, inputs, 0.3, batch_size=2)
    whole = searched(method, model, inputs, 0.3)
    assert_same(search, whole)
    assert (search.is_critical == (inputs[:, 0].abs() < 0.3)).double().mean() > 0.98
    if method == "auto":
        assert torch.equal(search.is_critical, inputs[:, 0].abs() < 0.3)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_logits_of_any_size(scale, offset, networks, searched):
    """Neither a factor nor an offset changes anything. (In LASS, a factor is a temperature.)"""
    model, inputs = images(networks)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return (self.model(x) + offset) * scale

    search = searched("auto", Scaled(), inputs, RADIUS)
    expected = searched("auto", model, inputs, RADIUS)
    assert torch.equal(search.is_critical, expected.is_critical)


def test_a_radius_of_the_wrong_shape_or_kind(method, networks, searched):
    model, inputs = images(networks)
    for shape in ((3,), (40, 1, 1, 1), (1, 3, 1, 1), (2, 1, 1)):
        with pytest.raises(ValueError, match=r"radius must broadcast .* example of shape \(3, 6"):
            searched(method, model, inputs, torch.ones(shape) * RADIUS)
    for radius in (torch.tensor(0.25), torch.full((3, 1, 1), 0.25), torch.full((6,), 0.25)):
        search = searched(method, model, inputs, radius.double())
        assert_same(search, searched(method, model, inputs, float(radius.flatten()[0])))


def test_a_radius_that_requires_a_gradient(method, networks, searched):
    model, inputs = images(networks)
    radius = torch.tensor(RADIUS, dtype=torch.float64, requires_grad=True)
    search = searched(method, model, inputs, radius)
    assert not search.points.requires_grad
    assert_same(search, searched(method, model, inputs, RADIUS))


def test_equal_inputs_of_any_radius(method, networks, searched):
    """Nothing is known of the units of a constant image."""
    model, inputs = images(networks)
    searched(method, model, torch.zeros_like(inputs[:2]), 30.0)


def test_an_uneven_model_finds_the_same_by_radius(networks):
    model, inputs = images(networks)
    smallest = critical_radius(model, LAYOUTS["channels_last"](inputs), [0.02, 0.05])
    assert torch.equal(smallest, critical_radius(model, inputs, [0.02, 0.05]))


@pytest.mark.parametrize("value", [0.1, torch.tensor(0.1), 1])
def test_numbers_of_all_kinds(method, value, networks, searched):
    model, inputs = images(networks)
    search = searched(method, model, inputs * 10, value)
    assert 0 <= search.ratio <= 1


def test_two_outputs_with_a_slope_of_nan(method, searched):
    """sqrt has an infinite slope at 0, and no slope is NaN here: inf times 0."""

    class Root(nn.Module):
        def forward(self, x):
            root = x.clamp(min=0).sqrt().sum(1)
            return torch.stack([root - 0.3, 0 * root], 1)

    inputs = torch.tensor([[0.0, 0.0], [0.0, 4.0], [4.0, 4.0], [0.01, 0.01]])
    search = searched(method, Root(), inputs, 0.3, bounds=(0.0, 5.0))
    assert not search.is_critical[[1, 2]].any()
    assert torch.equal(search.points[~search.is_critical], inputs[~search.is_critical])
