"""The paper's networks: sizes, what is random in them and when, and what they refuse."""

from itertools import pairwise
from math import prod

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools.models import MLP, NAMES, GaussianNoise, SmallAlexNet, TinyMLP, build

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
DISTURBANCES = [
    {"dropout": 0.5},
    {"input_dropout": 0.5},
    {"input_noise": 0.5},
    {"hidden_noise": 0.5},
]


def images(shape, n=4):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


def number_of_parameters(model):
    return sum(p.numel() for p in model.parameters())


def dense(*units):
    """Weights and biases of a chain of dense layers."""
    return sum(a * b + b for a, b in pairwise(units))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_model_maps_images_to_logits(name, shape):
    model = build(name, shape, 7, width=12)
    for n in (2, 5):
        assert model(images(shape, n)).shape == (n, 7)
    assert model.eval()(images(shape, 1)).shape == (1, 7)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_papers_mlp_has_two_hidden_layers_of_4096(shape):
    model = build("mlp", shape, 10)
    assert number_of_parameters(model) == dense(prod(shape), 4096, 4096, 10)


@pytest.mark.parametrize("shape", [(64,), (2, 3), (1, 2, 3, 4)])
def test_mlp_flattens_inputs_of_any_shape(shape):
    model = MLP(shape, 3, width=5, depth=4)
    assert number_of_parameters(model) == dense(prod(shape), 5, 5, 5, 5, 3)
    assert torch.equal(model(images(shape)), model.layers(images(shape).flatten(1)))


def test_tiny_mlp_sees_14_by_14():
    model = TinyMLP((1, 28, 28), 10)
    assert number_of_parameters(model) == dense(14 * 14, 16, 16, 10)
    x = images((1, 28, 28))
    # The mean over each 2x2 block, however it is computed.
    blocks = x.reshape(4, 1, 14, 2, 14, 2).mean((3, 5))
    torch.testing.assert_close(model(x), model.layers(blocks))
    assert torch.equal(model(x), model.layers(F.avg_pool2d(x, 2)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 14, 14)])
def test_tiny_mlp_leaves_smaller_images_alone(shape):
    model = TinyMLP(shape, 10)
    assert number_of_parameters(model) == dense(prod(shape), 16, 16, 10)
    assert torch.equal(model(images(shape)), model.layers(images(shape)))


def test_tiny_mlp_pools_each_side_on_its_own():
    model = TinyMLP((2, 28, 10), 3)
    assert number_of_parameters(model) == dense(2 * 14 * 10, 16, 16, 3)
    assert model(images((2, 28, 10))).shape == (4, 3)


@pytest.mark.parametrize(("shape", "side"), [((1, 8, 8), 1), ((1, 28, 28), 6), ((3, 32, 32), 7)])
def test_small_alexnet_has_the_papers_layers(shape, side):
    # The crop takes 2 off each side, each of two poolings halves and rounds up.
    convolutions = shape[0] * 25 * 200 + 200 + 200 * 25 * 200 + 200
    normalisation = 2 * (200 + 200 + 384 + 192)
    expected = convolutions + normalisation + dense(200 * side * side, 384, 192, 10)
    assert number_of_parameters(SmallAlexNet(shape, 10)) == expected


def test_small_alexnet_is_blind_to_what_it_crops():
    model = SmallAlexNet((1, 10, 10), 3, width=8).eval()
    x = images((1, 10, 10))
    border = x.clone()
    border[..., :2, :] = border[..., -2:, :] = 9.0
    border[..., :, :2] = border[..., :, -2:] = -9.0
    assert torch.equal(model(x), model(border))
    inner = x.clone()
    inner[..., 2, 2] += 1
    assert not torch.equal(model(x), model(inner))


def test_small_alexnet_without_crop_sees_everything():
    model = SmallAlexNet((1, 8, 8), 3, width=8, crop=0, depth=1).eval()
    x = images((1, 8, 8))
    corner = x.clone()
    corner[..., 0, 0] += 1
    assert not torch.equal(model(x), model(corner))


def test_dense_layers_of_small_alexnet_scale_with_its_width():
    linear = [
        m for m in SmallAlexNet((1, 8, 8), 10, width=50).modules() if isinstance(m, nn.Linear)
    ]
    assert [m.out_features for m in linear] == [96, 48, 10]
    narrow = [m for m in SmallAlexNet((1, 8, 8), 10, width=1).modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in narrow] == [2, 1, 10]


@pytest.mark.parametrize("kind", [MLP, SmallAlexNet])
@pytest.mark.parametrize("settings", DISTURBANCES, ids=lambda s: next(iter(s)))
def test_dropout_and_noise_act_in_train_mode_only(kind, settings):
    torch.manual_seed(0)
    model = kind((1, 8, 8), 3, width=20, **settings)
    x = images((1, 8, 8), 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_models_draw_nothing_unless_asked_to(name):
    model = build(name, (1, 8, 8), 3, width=8)
    state = torch.get_rng_state()
    assert torch.equal(model(images((1, 8, 8))), model(images((1, 8, 8))))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_has_its_standard_deviation():
    torch.manual_seed(0)
    n = 40_000
    added = GaussianNoise(0.3)(torch.ones(n)) - 1
    assert abs(float(added.mean())) < 4 * 0.3 / n**0.5
    assert abs(float(added.std()) - 0.3) < 4 * 0.3 / (2 * n) ** 0.5
    assert "std=0.3" in repr(GaussianNoise(0.3))


def test_input_noise_and_dropout_touch_the_inputs_alone():
    hooked = []
    model = MLP((4,), 2, width=3, input_noise=1.0, input_dropout=0.5)
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    linear.register_forward_pre_hook(lambda module, args: hooked.append(args[0]))
    model(torch.ones(6, 4))
    assert not torch.equal(hooked[0], torch.ones(6, 4))
    assert 0 < int((hooked[0] == 0).sum()) < 24
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 1
    assert sum(isinstance(m, GaussianNoise) for m in model.modules()) == 1


@pytest.mark.parametrize("kind", [MLP, SmallAlexNet])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and less than 1, got -0.1"),
        ({"input_dropout": 1.5}, "input_dropout must be at least 0 and less than 1, got 1.5"),
        ({"input_noise": -1.0}, "input_noise must be finite and not negative, got -1.0"),
        ({"hidden_noise": float("nan")}, "hidden_noise must be finite and not negative, got nan"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind((1, 8, 8), 3, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_needs_a_class(name):
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        build(name, (1, 8, 8), 0)


@pytest.mark.parametrize(("shape", "crop"), [((1, 8, 8), 4), ((1, 4, 28), 2), ((1, 8, 8), -1)])
def test_crop_must_leave_an_image(shape, crop):
    with pytest.raises(ValueError, match=f"crop must leave some of the image, got {crop}"):
        SmallAlexNet(shape, 3, crop=crop)


@pytest.mark.parametrize("kind", [TinyMLP, SmallAlexNet])
@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 1, 8, 8)])
def test_models_for_images_refuse_other_shapes(kind, shape):
    with pytest.raises(ValueError, match=r"input_shape must be \(channels, height, width\)"):
        kind(shape, 3)


def test_unknown_model_gets_those_that_there_are():
    with pytest.raises(
        ValueError, match="model must be one of mlp, tiny-mlp, small-alexnet, got 'r"
    ):
        build("resnet", (1, 8, 8), 3)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_from_the_global_random_state(name):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(name, (1, 8, 8), 3, width=8).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
