"""Proofs that an example is not critical: never wrong, and exact where the answer is known."""

import itertools
import math
import random
import re
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from memtools.critical.interval_rules import (
    Bounds,
    Rounding,
    UnsupportedError,
    refuse_inexact_products,
)
from memtools.critical.intervals import _Propagation, prove_uncritical
from memtools.guard import untouched

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
CLASSES = 4


class Function(nn.Module):
    """A function of the input, and after it a linear layer where ``features`` are given."""

    def __init__(self, function, features=None):
        super().__init__()
        self.function = function
        self.head = nn.Identity() if features is None else nn.Linear(features, CLASSES)

    def forward(self, x):
        return self.head(self.function(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = evaluated(nn.BatchNorm2d(4))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.first(x)
        x = F.relu(x + self.norm(self.second(F.relu(x))))
        x = torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1)
        return self.head(torch.flatten(x, 1))


class Functional(nn.Module):
    """Control flow that depends on shapes, and arithmetic with constants and between branches."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 6), torch.randn(6, 6)])
        self.scale = nn.Parameter(torch.tensor([0.7, -1.2, 0.4, 2.0, -0.3, 1.1]))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = (x - 0.1) / 0.3
        branches = []
        for index, weight in enumerate(self.weights):
            y = torch.tanh(x @ weight) * self.scale
            if y.shape[1] == 6 and index:
                y = 1 - y * torch.sigmoid(x)
            branches.append(y / (y.abs().mean(1, keepdim=True) + 0.5))
        return self.head(torch.cat(branches, dim=1))


def multiplied(x):
    return torch.einsum("nij,kj->nik", x, torch.ones(5, 3).to(x)).tanh().flatten(1)


def weight_normed(*sizes):
    return nn.utils.parametrizations.weight_norm(nn.Linear(*sizes))


class InPlace(nn.Module):
    """Writes to its input, through views, and to a slice."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        x.mul_(1.5).sub_(0.2)
        x[:, 3:] = x[:, :3].flip(1) + x[:, 3:]
        rows = x.view(-1, 2, 3)
        rows[:, 0].relu_()
        y = F.silu(self.first(x), inplace=True)
        y.clamp_(-1, 1)
        padded = torch.zeros_like(y)
        padded[:, 1:] = y[:, 1:]
        return self.head(padded)


def evaluated(norm):
    """With statistics as after training."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def mlp(*activations, features=6, width=12):
    widths = [features] + [width] * len(activations)
    pairs = zip(itertools.pairwise(widths), activations, strict=True)
    layers = [layer for (a, b), act in pairs for layer in (nn.Linear(a, b), act)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def network(*layers, features):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, CLASSES))


IMAGE = (2, 6, 6)
MODELS = {
    "linear": (lambda: mlp(), (6,)),
    "relu": (lambda: mlp(nn.ReLU(), nn.ReLU(inplace=True)), (6,)),
    "tanh, gelu": (lambda: mlp(nn.Tanh(), nn.GELU()), (6,)),
    "silu, mish": (lambda: mlp(nn.SiLU(), nn.Mish()), (6,)),
    "gelu by tanh, elu": (lambda: mlp(nn.GELU("tanh"), nn.ELU(0.7)), (6,)),
    "hardswish, leaky": (lambda: mlp(nn.Hardswish(), nn.LeakyReLU(0.2)), (6,)),
    "selu, softplus": (lambda: mlp(nn.SELU(), nn.Softplus(2.0)), (6,)),
    "prelu, sigmoid": (lambda: mlp(nn.PReLU(init=-0.3), nn.Sigmoid()), (6,)),
    "dropout": (lambda: mlp(nn.Sequential(nn.ReLU(), nn.Dropout())), (6,)),
    "tokens": (lambda: nn.Sequential(mlp(nn.ReLU()), Function(lambda x: x.mean(1))), (3, 6)),
    "softmax": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.Softmax(1)), (6,)),
    "log-softmax": (lambda: nn.Sequential(mlp(nn.ReLU()), nn.LogSoftmax(dim=-1)), (6,)),
    "softmax inside": (lambda: mlp(nn.LogSoftmax(1), nn.Softmax(1)), (6,)),
    "no linear head": (lambda: mlp(nn.ReLU()).append(nn.Tanh()), (6,)),
    "functional": (Functional, (6,)),
    "in place": (InPlace, (6,)),
    "einsum": (lambda: Function(multiplied, 10), (2, 3)),
    "weight_norm": (lambda: nn.Sequential(weight_normed(6, 8), nn.ReLU(), nn.Linear(8, 4)), (6,)),
    "conv, BatchNorm, max": (
        lambda: network(
            *(nn.Conv2d(2, 4, 3), evaluated(nn.BatchNorm2d(4)), nn.ReLU(True), nn.MaxPool2d(2)),
            features=16,
        ),
        IMAGE,
    ),
    "conv, grouped, strided": (
        lambda: network(
            *(nn.Conv2d(2, 6, 3, 2, 1, groups=2), nn.ReLU()),
            nn.Conv2d(6, 6, 2, groups=6, bias=False),
            features=24,
        ),
        IMAGE,
    ),
    "conv, dilated, reflected": (
        lambda: network(
            *(nn.Conv2d(2, 4, 3, dilation=2, padding=1, padding_mode="reflect"), nn.GELU()),
            *(nn.AvgPool2d(2), nn.BatchNorm2d(4, affine=False)),
            features=16,
        ),
        IMAGE,
    ),
    "conv, transposed": (
        lambda: network(
            *(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(3)),
            features=36,
        ),
        IMAGE,
    ),
    "conv, circular, 1d": (
        lambda: network(
            *(nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), evaluated(nn.BatchNorm1d(4))),
            *(nn.ReLU(), nn.AvgPool1d(3)),
            features=8,
        ),
        (2, 6),
    ),
    "conv, 3d": (
        lambda: network(
            *(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.MaxPool3d(2, 1), nn.AvgPool3d(1)), features=3
        ),
        (1, 3, 3, 3),
    ),
    "residual": (Residual, IMAGE),
    "channels last": (
        lambda: network(nn.Conv2d(2, 4, 3), nn.ReLU(), features=64).to(
            memory_format=torch.channels_last
        ),
        IMAGE,
    ),
    "record": (lambda: Function(lambda x: SimpleNamespace(logits=x[:, :CLASSES] * 2)), (6,)),
}  # fmt: skip


def build(name, dtype, n=60):
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().to(dtype)
        for weight in model.parameters():
            weight.data.mul_(2)  # for more than one class to be predicted
        inputs = torch.randn(n, *shape, dtype=torch.float64).to(dtype)
        # Narrow boxes and wide ones.
        radius = 10 ** torch.empty(n, *[1] * len(shape), dtype=torch.float64).uniform_(-3, 0.5)
    return model, inputs, radius.to(dtype)


def prove(model, low, high, predicted=None):
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        if predicted is None:
            predicted = forward((low + high) / 2).argmax(1)
        return prove_uncritical(forward, low, high, predicted)


def is_refuted(model, low, high, predicted, *, points=200, steps=12):
    """Whether a point of another class was found: at random, in a corner, or uphill."""
    generator = torch.Generator().manual_seed(1)
    found = torch.zeros_like(predicted, dtype=torch.bool)
    width = high - low

    def look(x):
        x = torch.minimum(torch.maximum(x, low), high)  # of rounding
        with torch.no_grad():
            found.logical_or_(logits_of(forward(x)).argmax(1) != predicted)

    def logits_of(output):
        return getattr(output, "logits", output)

    with untouched(model, evaluating=True) as forward:
        for kind in range(points):
            share = torch.rand(low.shape, generator=generator, dtype=torch.float64).to(low)
            look(low + width * (share.round() if kind % 2 else share))
        for other in range(CLASSES):
            x = (low + high) / 2
            for _ in range(steps):
                x = x.detach().requires_grad_()
                with torch.enable_grad():
                    logits = logits_of(forward(x))
                    ahead = logits[:, other] - logits.gather(1, predicted[:, None])[:, 0]
                    (gradient,) = torch.autograd.grad(ahead.sum(), x)
                look(torch.where(gradient > 0, high, low))
                x = torch.minimum(torch.maximum(x + width * gradient.sign() / 5, low), high)
                look(x.detach())
    return found


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_no_proof_is_refuted(name, dtype):
    model, inputs, radius = build(name, dtype)
    low, high = inputs - radius, inputs + radius
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        predicted = forward(inputs).argmax(1)
    proof = prove(model, low, high, predicted)
    assert proof.unsupported is None
    refuted = is_refuted(model, low, high, predicted)
    assert not (proof.is_proved & refuted).any()
    # Neither of the two is idle.
    assert proof.is_proved.float().mean() > 0.1
    assert refuted.any()


@DTYPES
def test_of_a_linear_model_all_is_known(dtype):
    """No other class exactly where each is farther behind than it can come nearer."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(50, CLASSES).to(dtype), torch.randn(500, 50).to(dtype)
    low, high = inputs - 0.1 * torch.rand(50), inputs + 0.2
    low, high = low.to(dtype), high.to(dtype)
    weight, bias = model.weight.detach().double(), model.bias.detach().double()
    predicted = model(inputs).argmax(1)
    ahead = weight[predicted][:, None] - weight  # (n, C, d)
    centre, radius = (low.double() + high.double()) / 2, (high.double() - low.double()) / 2
    margin = (ahead @ centre[:, :, None])[..., 0] + bias[predicted, None] - bias
    margin -= (ahead.abs() @ radius[:, :, None])[..., 0]
    margin.scatter_(1, predicted[:, None], torch.inf)
    nearest = margin.amin(1)
    clear = nearest.abs() > 1e-4  # rounding decides nothing there
    assert clear.sum() > 490
    assert 0.2 < (nearest > 0).float().mean() < 0.8
    for whole in (
        model,
        nn.Sequential(model, nn.LogSoftmax(1)),
        nn.Sequential(model, nn.Softmax(1)),
    ):
        is_proved = prove(whole, low, high, predicted).is_proved
        assert torch.equal(is_proved[clear], nearest[clear] > 0)


def test_the_last_layer_is_taken_in_one_piece():
    """Both logits rise with x; one of them alone tells nothing about which is the larger."""
    model = nn.Linear(1, 2).double()
    model.weight.data, model.bias.data = (
        torch.tensor([[9.0], [10.0]]).double(),
        torch.ones(2).double(),
    )
    low, high = torch.tensor([[1.0]]).double(), torch.tensor([[5.0]]).double()
    assert prove(model, low, high).is_proved.all()
    assert not prove(nn.Sequential(model, nn.ReLU()), low, high).is_proved.any()


@DTYPES
@pytest.mark.parametrize("head", [nn.Identity(), nn.Softmax(1), nn.LogSoftmax(1), nn.Tanh()])
def test_a_tie_is_not_proved(head, dtype):
    """argmax takes the first of several, but which comes first may change by rounding."""
    linear = nn.Linear(3, CLASSES).to(dtype)
    linear.weight.data[1] = linear.weight.data[0]
    linear.bias.data = torch.tensor([5.0, 5.0, 0.0, 0.0]).to(dtype)
    model, x = nn.Sequential(linear, head), torch.zeros(1, 3, dtype=dtype)
    assert not prove(model, x - 1e-9, x + 1e-9).is_proved.any()
    linear.bias.data[1] = 4.9
    assert prove(model, x - 1e-9, x + 1e-9).is_proved.all()


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_softmax_may_round_different_logits_to_a_tie(head):
    linear, x = nn.Linear(1, CLASSES), torch.zeros(1, 1)
    linear.weight.data.zero_()
    model = nn.Sequential(linear, head)
    tied = 0
    for step in range(400):
        linear.bias.data = torch.tensor([0.0, 1e-9 * 1.05**step, -1.0, -1.0])
        logits, out = linear(x), model(x)
        is_tie = bool(out[0, 0] == out[0, 1]) and bool(logits[0, 0] != logits[0, 1])
        tied += is_tie
        assert not (is_tie and prove(model, x, x, torch.tensor([1])).is_proved.item())
    assert tied
    assert prove(model, x, x, torch.tensor([1])).is_proved.all()


def test_only_one_softmax_keeps_the_order_of_the_logits():
    """The second of two may make one of numbers that the first has kept apart."""
    linear, x = nn.Linear(1, 5000), torch.zeros(1, 1)
    linear.weight.data.zero_()
    linear.bias.data.zero_()[1] = 1e-4
    once, one = nn.Sequential(linear, nn.Softmax(1)), torch.tensor([1])
    assert once(x)[0, 1] > once(x)[0, 0]
    assert prove(once, x, x, one).is_proved.all()
    for second in (nn.Softmax(1), nn.LogSoftmax(1)):
        twice = once + nn.Sequential(second)
        assert twice(x)[0, 1] == twice(x)[0, 0]
        assert not prove(twice, x, x, one).is_proved.any()


def test_a_softmax_over_the_batch_keeps_no_order():
    linear, x = nn.Linear(2, 2, bias=False), torch.tensor([[0.0, 1.0], [-5.0, 10.0]])
    linear.weight.data = torch.eye(2)
    model = Function(lambda x: torch.softmax(linear(x), 0))
    assert prove(model, x, x, model(x).argmax(1)).is_proved.all()
    assert not prove(model, x, x, linear(x).argmax(1)).is_proved[0]


def bounds_of(function, low, high):
    """Bounds of what a function of a tensor gives."""
    propagation = _Propagation()
    ends = (end.to(torch.float64, copy=True) for end in (low, high))
    with torch.no_grad(), propagation:
        result = function(propagation.interval(Bounds(*ends), low.dtype))
    assert propagation.unsupported is None
    return result.bounds


CURVES = {
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.1, 0.7),
    "clamp from below": lambda x: x.clamp_min(0.1),
    "clamp from above": lambda x: x.clamp_max(0.1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-0.1), torch.tensor(0.7)),
    "divided": lambda x: x / -0.3,
    "divided by": lambda x: 0.1 / (x + 10),
    "elu": lambda x: F.elu(x, 1.3),
    "elu that turns": lambda x: F.elu(x, -1.3),
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu that turns": lambda x: F.leaky_relu(x, -0.1),
    "log": lambda x: torch.log(x + 10),
    "log1p": lambda x: torch.log1p(x.abs()),
    "mish": F.mish,
    "negative": lambda x: -x,
    "power 0.5": lambda x: x.relu() ** 0.5,
    "power 2": torch.square,
    "power 3": lambda x: x**3,
    "power -2": lambda x: (x + 10) ** -2,
    "prelu": lambda x: F.prelu(x, torch.full((1,), -0.3, dtype=x.dtype)),
    "reciprocal": lambda x: torch.reciprocal(x - 10),
    "relu": torch.relu,
    "rsqrt": lambda x: torch.rsqrt(x + 10),
    "scaled": lambda x: x * -0.1,
    "shifted": lambda x: torch.add(0.1 - x, 0.3, alpha=0.7),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softplus with a step": lambda x: F.softplus(x, beta=2, threshold=1),
    "sqrt": lambda x: torch.sqrt(x + 10),
    "subtracted": lambda x: torch.sub(x, 0.3, alpha=0.7),
    "tanh": torch.tanh,
    "where": lambda x: torch.where(torch.tensor(True), x, torch.tensor(0.1)),
    "where not": lambda x: torch.where(torch.tensor(False), x, torch.tensor(0.1).double() / 3),
}


@DTYPES
@pytest.mark.parametrize("name", CURVES)
def test_bounds_of_functions_of_one_number(name, dtype):
    """They hold for many values, as the model rounds them, and are no wider than need be."""
    function = CURVES[name]
    torch.manual_seed(0)
    centre = torch.cat([torch.linspace(-9, 9, 400), torch.randn(400) * 1e-3]).double()
    for width in (0.0, 1e-6, 0.03, 1.0, 8.0):
        low, high = (
            (centre - width).clamp(-9.5, 9.5).to(dtype),
            (centre + width).clamp(-9.5, 9.5).to(dtype),
        )
        bounds = bounds_of(function, low, high)
        share = torch.linspace(0, 1, 300, dtype=torch.float64)[:, None]
        points = (low.double() + (high.double() - low.double()) * share).to(dtype)
        values = function(torch.minimum(torch.maximum(points, low), high)).double()
        assert (bounds.lower <= values).all()
        assert (values <= bounds.upper).all()
        least, most = values.amin(0), values.amax(0)
        # What lies between the points, a step of a softplus, and rounding.
        slack = 0.02 * (most - least) + 500 * torch.finfo(dtype).eps * (10 + values.abs().amax(0))
        slack += {"softplus": 1e-8, "softplus with a step": 0.7}.get(name, 0)
        assert (bounds.lower >= least - slack).all()
        assert (bounds.upper <= most + slack).all()


def constant(*shape, seed=0):
    """A function that gives the same numbers of both signs each time, in the dtype of an input."""
    count = math.prod(shape)
    return lambda x: (2 * torch.arange(1, count + 1, dtype=x.dtype) + seed).sin().reshape(shape)


def convolved(kernel, *, bias=None, transposed=False, **options):
    functions = [F.conv1d, F.conv2d, F.conv3d]
    if transposed:
        functions = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
    function = functions[len(kernel) - 3]
    kernel = constant(*kernel)
    bias = None if bias is None else constant(bias)
    return lambda x: function(x, kernel(x), bias if bias is None else bias(x), **options)


def normalised(dims, weight=None, bias=None):
    mean, variance = constant(dims, seed=1), constant(dims, seed=2)

    def function(x):
        parameters = [None if p is None else p(x) for p in (weight, bias)]
        return F.batch_norm(x, mean(x), variance(x).abs() + 0.1, parameters[0], parameters[1])

    return function


def written(x):
    """Into memory that was not initialised, through views of it, and from a view of itself."""
    memory = torch.empty_like(x)
    memory[:, 6:] = x[:, :6] * 2
    memory[:, :6].copy_(x[:, 6:])
    rows = memory.view(-1, 3, 4)
    rows[:, 1].neg_()
    rows.transpose(1, 2)[:, 0].add_(rows[:, 2, :3])
    memory[:, 0] = 0.1
    memory[:, 1].zero_()
    return memory


def like(x):
    x = x + torch.ones_like(x) + x.new_full((12,), 0.1) + x.new_zeros(12)
    return x * torch.full_like(x, 0.3) - x.new_ones(12) + torch.zeros_like(x)


# Functions of a batch, and the shape of an example: never more than 12 numbers, 4096 corners.
MAPS = {
    "linear": (lambda x: F.linear(x, constant(5, 12)(x), constant(5)(x)), (12,)),
    "linear without bias": (lambda x: F.linear(x, constant(5, 12)(x)), (12,)),
    "linear in rows": (lambda x: F.linear(x, constant(5, 4)(x), constant(5)(x)), (3, 4)),
    "vector": (lambda x: x @ constant(12)(x), (12,)),
    "constant times input": (lambda x: (constant(5, 12)(x) @ x.T).T, (12,)),
    "batches of matrices": (lambda x: torch.matmul(x, constant(2, 3, 4)(x)), (2, 2, 3)),
    "constant times matrices": (lambda x: torch.matmul(constant(2, 4, 2)(x), x), (2, 2, 3)),
    "conv": (convolved((3, 2, 2, 2), bias=3), (2, 2, 3)),
    "conv, padded": (convolved((3, 1, 3, 3), padding=1), (1, 3, 4)),
    "conv, grouped": (convolved((4, 1, 2, 2), groups=2, bias=4), (2, 2, 3)),
    "conv, strided": (convolved((2, 1, 2), stride=2, padding=1, dilation=2), (1, 12)),
    "conv, 3d": (convolved((2, 1, 1, 1, 3), padding="same"), (1, 2, 2, 3)),
    "conv, transposed": (convolved((2, 3, 2, 2), transposed=True, stride=2, bias=3), (2, 2, 3)),
    "conv, transposed, grouped": (
        convolved((4, 1, 3), transposed=True, groups=2, output_padding=1, stride=2),
        (4, 3),
    ),
    "batch norm": (normalised(3, constant(3), constant(3, seed=5)), (3, 2, 2)),
    "batch norm without weight": (normalised(12), (12,)),
    "mean": (lambda x: x.mean((1, 2)), (3, 4)),
    "mean and dtype": (lambda x: x.mean(1, keepdim=True, dtype=torch.float64), (12,)),
    "sum": (lambda x: x.sum(-1), (3, 4)),
    "average pool": (lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), (1, 3, 4)),
    "average pool, 1d": (lambda x: F.avg_pool1d(x, 3, 2), (1, 12)),
    "average pool, 3d": (lambda x: F.avg_pool3d(x, 2, 1), (1, 2, 2, 3)),
    "average pool to a size": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (1, 3, 4)),
    "average pool to one": (lambda x: F.adaptive_avg_pool2d(x, 1), (3, 2, 2)),
    "average pool to a size, 3d": (lambda x: F.adaptive_avg_pool3d(x, (1, 2, 2)), (1, 2, 2, 3)),
    "max pool": (lambda x: F.max_pool2d(x, 2, 1, 1, ceil_mode=True), (1, 3, 4)),
    "max pool, 1d": (lambda x: F.max_pool1d(x, 3, dilation=2), (1, 12)),
    "max pool, 3d": (lambda x: F.max_pool3d(x, 2, 1), (1, 2, 2, 3)),
    "max pool to a size": (lambda x: F.adaptive_max_pool2d(x, 2), (1, 3, 4)),
    "largest": (lambda x: torch.stack([x.amax(1), x.max(1).values, x.max(1)[0]]), (3, 4)),
    "smallest": (lambda x: torch.stack([x.amin(1), x.min(1).values]), (3, 4)),
    "larger": (lambda x: torch.maximum(x[:, :6], x[:, 6:]), (12,)),
    "smaller": (lambda x: torch.minimum(x, constant(12)(x)), (12,)),
    "views": (lambda x: x.view(-1, 4, 3).permute(0, 2, 1).flatten(1)[:, 1:9:2].unsqueeze(1), (12,)),
    "expanded": (lambda x: x[:, :1].expand(-1, 5), (12,)),
    "squeezed": (lambda x: x.reshape(-1, 1, 12).squeeze(1).transpose(0, 1).T.contiguous(), (12,)),
    "parts": (lambda x: torch.cat([*x.split([3, 9], 1), x.unbind(1)[3][:, None]], 1), (12,)),
    "beside constants": (lambda x: torch.cat([x, constant(12)(x).expand_as(x)], 1), (12,)),
    "where": (lambda x: torch.where(constant(12)(x) > 0, x, 0.1), (12,)),
    "masked": (lambda x: x.masked_fill(constant(12)(x) > 0, 0.1), (12,)),
    "chosen": (lambda x: x[:, [3, 1, 1]] + x[:, torch.tensor([0, 5, 7])], (12,)),
    "gathered": (lambda x: x.gather(1, torch.tensor([[3, 1]]).expand(len(x), 2)), (12,)),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 1])), (12,)),
    "turned": (lambda x: x.flip(1).roll(1, 2), (3, 4)),
    "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2), (3, 4)),
    "repeated": (lambda x: x.repeat(1, 2).tile(2), (12,)),
    "windows": (lambda x: x.unfold(1, 3, 2), (12,)),
    "padded": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.1), (1, 3, 4)),
    "padded by reflection": (lambda x: F.pad(x, (1, 2, 0, 1), "reflect"), (1, 3, 4)),
    "padded by replication": (lambda x: F.pad(x, (1, 2, 0, 1), "replicate"), (1, 3, 4)),
    "padded around": (lambda x: F.pad(x, (1, 2, 0, 1), "circular"), (1, 3, 4)),
    "pixel_shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), (4, 1, 3)),
    "upsampled": (lambda x: F.interpolate(x, scale_factor=2), (1, 3, 4)),
    "like": (like, (12,)),
    "memory": (written, (12,)),
    "added to itself": (lambda x: x[:, :6] + 2 * x[:, 6:] - 0.1, (12,)),
    "times another": (lambda x: x[:, :6] * x[:, 6:], (12,)),
    "times itself": (lambda x: x * x, (12,)),
    "divided by another": (lambda x: x[:, :6] / (x[:, 6:].exp() + 1), (12,)),
    "divided, negative": (lambda x: x[:, :6] / (x[:, 6:].abs() * -1 - 0.1), (12,)),
    "to float64 and back": (lambda x: (x.double() * 0.1).float().to(torch.float64), (12,)),
    "two dtypes": (lambda x: x * torch.tensor(0.1).double() + torch.ones(()).double() / 7, (12,)),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), (12,)),
    "inference mode": (torch.inference_mode()(lambda x: F.linear(x, constant(5, 12)(x))), (12,)),
    "softmax": (lambda x: torch.softmax(x, 1), (12,)),
    "softmax in the middle": (lambda x: torch.softmax(x, 1), (3, 4)),
    "softmax that underflows": (lambda x: torch.softmax(300 * x, 1), (12,)),
    "log-softmax": (lambda x: torch.log_softmax(10 * x, -1), (12,)),
    "softmax of one": (lambda x: torch.softmax(x[:, :1], 1), (12,)),
}  # fmt: skip
NOT_TIGHT = {"times itself", "to float64 and back", "softmax that underflows"}


@DTYPES
@pytest.mark.parametrize("name", MAPS)
def test_bounds_of_functions_of_many_numbers(name, dtype):
    """They hold in all corners and between them, and are reached in the corners."""
    function, shape = MAPS[name]
    torch.manual_seed(0)
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)
    for width in (0.0, 1e-3, 1.0):
        low = torch.randn(1, 12).to(dtype)
        high = (low + width * torch.rand(1, 12)).to(dtype)
        bounds = bounds_of(function, low.reshape(1, *shape), high.reshape(1, *shape))
        ends = low.double() + corners * (high.double() - low.double())
        inside = low.double() + torch.rand_like(corners) * (high.double() - low.double())
        values = []
        for points in (ends, inside):
            points = torch.minimum(torch.maximum(points.to(dtype), low), high)
            values.append(function(points.reshape(-1, *shape)).double())
        if name in ("largest", "smallest"):
            values = [v.transpose(0, 1) for v in values]
            bounds = Bounds(bounds.lower.transpose(0, 1), bounds.upper.transpose(0, 1))
        assert (bounds.lower <= torch.cat(values)).all()
        assert (torch.cat(values) <= bounds.upper).all()
        assert bounds.lower.shape == values[0][:1].shape
        if name not in NOT_TIGHT:
            slack = 2000 * torch.finfo(dtype).eps * (1 + values[0].abs().amax(0, keepdim=True))
            assert (bounds.lower >= values[0].amin(0, keepdim=True) - slack).all()
            assert (bounds.upper <= values[0].amax(0, keepdim=True) + slack).all()


# Rounding.


def summed(a, b, dtype):
    """``sum a b`` as a model may have it, one product after the other in its dtype."""
    kind = np.float32 if dtype == torch.float32 else np.float64
    return (a.numpy().astype(kind) * b.numpy().astype(kind)).cumsum(dtype=kind)[-1].item()


def exactly(a, b):
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction())


SUMS = {
    "linear": lambda x, w: F.linear(x, w[None], torch.zeros(1, dtype=x.dtype)),
    "matrices": lambda x, w: x @ w[:, None],
    "vector": lambda x, w: x @ w,
    "batches": lambda x, w: torch.bmm(x[None], w[None, :, None]),
    "conv": lambda x, w: F.conv1d(x[:, None], w[None, None]),
    "conv, transposed": lambda x, w: F.conv_transpose1d(x[:, :, None], w[:, None, None]),
    "sum": lambda x, w: (x * w).sum(1),
    "mean": lambda x, w: (x * w).mean(1) * x.shape[1],
    "average pool": lambda x, w: F.avg_pool1d((x * w)[:, None], x.shape[1]) * x.shape[1],
    "average pool in a square": lambda x, w: F.avg_pool2d((x * w).view(1, 1, 70, 70), [70]) * 4900,
    "average pool to a size": lambda x, w: (
        F.adaptive_avg_pool1d(torch.cat([x * w, x * w], 1)[:, None], 2)[0, 0, 0] * x.shape[1]
    ),
}


@DTYPES
@pytest.mark.parametrize("name", SUMS)
def test_bounds_hold_for_sums_in_any_order(name, dtype):
    """Of numbers each of which is rounded up when it is added, and of random ones."""
    torch.manual_seed(0)
    terms, unit = 4900, torch.finfo(dtype).eps / 2
    growing = torch.full((terms,), 1.01 * unit, dtype=dtype)
    growing[0] = 1
    for x, w in (
        (growing, torch.ones(terms, dtype=dtype)),
        (torch.ones(terms, dtype=dtype), growing),
        (torch.randn(terms).to(dtype), torch.randn(terms).to(dtype)),
    ):
        bounds = bounds_of(lambda x, w=w: SUMS[name](x, w), x[None], x[None])
        orders = [torch.arange(terms), torch.randperm(terms), (x * w).argsort()]
        values = [summed(x[order], w[order], dtype) for order in orders]
        values.append(SUMS[name](x[None], w).item())
        assert all(bounds.lower.item() <= value <= bounds.upper.item() for value in values)
        assert bounds.lower.item() <= exactly(x, w) <= bounds.upper.item()
        if x is growing or w is growing:  # no bound that is smaller by a tenth would do
            assert values[0] - exactly(x, w) > 0.9 * terms * unit


def test_classes_that_rounding_can_exchange_are_not_proved():
    """Logits that are apart by about the rounding of a long sum, in any order of summation."""
    torch.manual_seed(0)
    terms = 500
    proved = exchanged = 0
    for case in range(100):
        dtype = (torch.float32, torch.float64)[case % 2]
        weight = (torch.rand(2, terms, dtype=torch.float64) + 0.5).to(dtype)
        x = (torch.rand(1, terms, dtype=torch.float64) + 0.5).to(dtype)
        first, second = (exactly(x[0], w) for w in weight)
        apart = (
            10 ** random.Random(case).uniform(-3, 1)
            * terms
            * torch.finfo(dtype).eps
            / 2
            * 2
            * first
        )
        model = nn.Linear(terms, 2).to(dtype)
        model.weight.data = weight
        model.bias.data = torch.tensor([0.0, float(first - second - apart)], dtype=dtype)
        is_proved = prove(model, x, x, torch.tensor([0])).is_proved.item()
        proved += is_proved
        orders = [torch.arange(terms), (weight[0] * x[0]).argsort(), (weight[1] * x[0]).argsort()]
        sums = [
            [summed(x[0, o], w[o], dtype) + b for o in orders]
            for w, b in zip(weight, model.bias.tolist(), strict=True)
        ]
        is_exchanged = min(sums[0]) <= max(sums[1])
        exchanged += is_exchanged
        assert not (is_proved and is_exchanged)
    assert proved > 10
    assert exchanged > 10


@settings(max_examples=60)
@given(
    low=st.floats(-1e3, 1e3, width=32),
    width=st.floats(0, 10, width=32),
    other=st.floats(-1e3, 1e3, width=32),
    share=st.floats(0, 1),
)
def test_bounds_hold_in_arithmetic(low, width, other, share):
    """Of any sign, and so small that they are lost."""
    for scale in (1.0, 1e-22, 1e-40):
        a, b, c = (
            torch.tensor([scale * v], dtype=torch.float32) for v in (low, low + width, other)
        )
        x = torch.minimum(torch.maximum(a + (b - a) * share, a), b)
        for function in (
            lambda x, c=c: x * c,
            lambda x, c=c: x + c,
            lambda x, c=c: x * x * c,
            lambda x, c=c: x / (c.abs() + 1),
            lambda x, c=c: c * x.exp(),
            lambda x, c=c: F.linear(x[None], c[:, None]),
        ):
            bounds, value = bounds_of(function, a, b), function(x).double()
            flushed = torch.where(value.abs() < torch.finfo(torch.float32).tiny, 0.0, value)
            for v in (value, flushed):
                assert bool((bounds.lower <= v) & (v <= bounds.upper)) or bounds.lower.isnan()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 1e20 * 1e20 * 0,
        lambda x: x.exp() - x.exp(),
        lambda x: (x * 1e20 * 1e20).clamp(-1, 1),
        lambda x: F.relu6(x.exp()) * 0,
        lambda x: torch.sigmoid((x * 1e30) ** 2 - (x * 1e30) ** 2),
        lambda x: torch.softmax(x[:, :2] * 1e38 * 10, 1),
        lambda x: F.max_pool1d((x * 1e38 * 10)[:, None], 2),
        lambda x: x * torch.inf,
        lambda x: x + torch.tensor([torch.nan]),
        lambda x: 1 / (x - 100),
        lambda x: (x * 1e-32) / 1e-39,
        lambda x: (x - 100) ** -1,
        lambda x: torch.log(x - 200),
        lambda x: F.linear(x, torch.full((1, 4), 1e37)),
        lambda x: F.linear(F.linear(x, torch.eye(4) * 1e30), torch.full((1, 4), 1e-30)),
        lambda x: x.view(-1, 2, 2) / 1e-45,
        torch.empty_like,
    ],
)
def test_nothing_is_known_of_what_may_overflow(function):
    """And once it is not, of nothing that comes from it: the model's own number may be NaN."""
    x = torch.full((1, 4), 100.0)
    bounds = bounds_of(function, x - 1, x + 1)
    assert bounds.lower.isnan().all()
    assert bounds.upper.isnan().all()


@DTYPES
def test_a_box_that_is_none_proves_nothing(dtype):
    model = nn.Linear(3, CLASSES).to(dtype)
    model.bias.data[0] = 100
    x = torch.zeros(5, 3, dtype=dtype)
    low, high = x - 1, x + 1
    low[1], high[2], low[3], low[4] = torch.nan, torch.inf, 2, -torch.finfo(dtype).max
    kept = low.clone(), high.clone()
    proof = prove(model, low, high, torch.zeros(5, dtype=torch.int64))
    assert proof.is_proved.tolist() == [True, False, False, False, False]
    assert proof.unsupported is None
    # The caller's walls stay as they were.
    torch.testing.assert_close((low, high), kept, equal_nan=True, rtol=0, atol=0)


# What ends a proof.


def looked_at(x):
    return x if x.sum().item() > 0 else -x


def branched(x):
    return x if x.sum() > 0 else -x


def caught(look):
    """A model that goes on when it fails to look at its numbers."""

    def function(x):
        try:
            return x if look(x) else -x
        except Exception:
            return x

    return function


def with_noise(x):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)


def with_python_noise(x):
    return x * random.random()


def into_a_constant(x):
    memory = torch.zeros(x.shape, dtype=x.dtype)
    memory[:] = x
    return memory


def given_out(operator):
    """Into memory that is given for the result."""

    def function(x):
        memory = torch.zeros(x.shape, dtype=x.dtype)
        operator(x, memory)
        return memory

    return function


def with_other_data(x):
    y = x + 0
    y.data = -100 * x
    return y


def remembered(kept):
    """Uses what an earlier forward pass left."""

    def function(x):
        kept.append(x)
        return kept[0]

    return function


UNSUPPORTED = {
    "sin": (torch.sin, r"aten\.sin\.default has no rule for intervals"),
    "cumsum": (lambda x: x.cumsum(1), r"aten\.cumsum\.default has no rule"),
    "in place": (lambda x: x.sin_(), r"aten\.sin_\.default has no rule"),
    "inside": (lambda x: F.normalize(x), r"aten\.linalg_vector_norm\.default has no rule"),
    "item": (looked_at, r"aten\._local_scalar_dense\.default has no rule"),
    "bool": (branched, r"aten\.gt\.Scalar has no rule"),
    "caught item": (caught(lambda x: x[0, 0].item() > 0), r"_local_scalar_dense"),
    "caught bool": (caught(lambda x: bool(x[0, 0])), r"_local_scalar_dense|is_nonzero"),
    "caught numpy": (caught(lambda x: x.numpy()[0, 0] > 0), r"numpy"),
    "caught array": (caught(lambda x: np.asarray(x)[0, 0] > 0), r"numpy|array"),
    "caught list": (caught(lambda x: x.tolist()[0][0] > 0), r"tolist"),
    "caught storage": (
        caught(lambda x: x.untyped_storage().data_ptr()),
        r"untyped_storage reaches past the operators",
    ),
    "caught address": (caught(lambda x: x.data_ptr()), r"data_ptr fails on intervals"),
    "caught text": (caught(lambda x: "-" in str(x)), r"aten|repr|str"),
    "nonzero": (lambda x: x[x > 0], r"aten\.gt\.Scalar has no rule"),
    "own noise": (with_noise, r"aten\.randn\.\w+ draws random numbers"),
    "noise": (torch.rand_like, r"aten\.rand_like\.default draws random numbers"),
    "dropout": (lambda x: F.dropout(x, 0.5), r"draws random numbers"),
    "python's noise": (with_python_noise, r"draws random numbers"),
    "constant": (into_a_constant, r"aten\.copy_\.default writes what depends on the input"),
    "out of cat": (
        given_out(lambda x, out: torch.cat([x], out=out)),
        r"aten\.cat\.out has no rule",
    ),
    "out of add": (
        given_out(lambda x, out: torch.add(x, 1, out=out)),
        r"aten\.add\.out has no rule",
    ),
    "other data": (with_other_data, r"__set__ reaches past the operators"),
    "two intervals": (lambda x: x @ x.T @ x, r"aten\.mm\.default multiplies two tensors"),
    "scaled product": (
        lambda x: torch.addmm(torch.zeros(4), x, torch.eye(6, 4), alpha=2),
        r"aten\.addmm\.default is scaled by alpha or beta",
    ),
    "interval bias": (
        lambda x: torch.addmm(x[:4, :4], x, torch.eye(6, 4).to(x)),
        r"aten\.addmm\.default adds what depends on the input",
    ),
    "kernel": (lambda x: F.conv1d(x[:, None], x[:1, None, :3]), r"has a kernel that depends"),
    "unpooled": (
        lambda x: F.max_unpool1d(*F.max_pool1d(x[:, None], 2, return_indices=True), [2]),
        r"max_unpool2d\.default has no rule",
    ),
    "place of the largest": (
        lambda x: x.gather(1, x.max(1, keepdim=True).indices),
        r"aten\.gather\.default uses the place of a largest number",
    ),
    "batch statistics": (lambda x: F.instance_norm(x[:, None]), r"statistics of the input"),
    "exponent": (lambda x: x**0.1, r"aten\.pow\.Tensor_Scalar has the exponent 0\.1"),
    "threshold": (
        lambda x: F.softplus(x, threshold=1000),
        r"aten\.softplus\.default has the threshold 1000, before which exp may overflow",
    ),
    "exponents": (lambda x: 2**x, r"aten\.pow\.Scalar has an exponent that is no number"),
    "parameter": (lambda x: F.prelu(x, x[0, :1]), r"has a parameter that depends on the input"),
    "rounded": (lambda x: torch.div(x, 2, rounding_mode="floor"), r"aten\.div\.Tensor_mode"),
    "turned in place": (lambda x: x.t_(), r"aten\.t_\.default has no rule"),
    "half": (lambda x: x.half(), r"computes in torch\.float16, and not in float32 or float64"),
    "bfloat16": (lambda x: x.bfloat16().float(), r"computes in torch\.bfloat16"),
    "integers": (lambda x: x.long().float(), r"_to_copy\.default computes in torch\.int64"),
    "shape": (lambda x: x[:, None], r"the model returns a tensor of shape \(3, 1, 6\)"),
    "no tensor": (lambda x: None, r"NoLogitsError: model must return a tensor"),
    "own error": (lambda x: [][0], r"IndexError: list index out of range"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_named_and_nothing_is_proved(name):
    function, sentence = UNSUPPORTED[name]
    x = torch.zeros(3, 6)
    x[:, 0] = 100
    proof = prove(Function(function), x - 0.1, x + 0.1, torch.zeros(3, dtype=torch.int64))
    assert proof.unsupported is not None
    assert re.search(sentence, proof.unsupported), proof.unsupported
    assert not proof.is_proved.any()


def test_numbers_of_an_earlier_pass_are_not_taken_for_those_of_this():
    model = Function(remembered([]))
    x = torch.zeros(3, 6)
    with untouched(model, evaluating=True) as forward:
        classes = torch.zeros(3, dtype=torch.int64)
        first = prove_uncritical(forward, x, x, classes)
        second = prove_uncritical(forward, x, x, classes)
    assert first.unsupported is None
    assert re.search("earlier forward pass", second.unsupported or "")


def test_what_is_known_of_logits_is_forgotten_when_they_are_written_to():
    """In place on the logits, on a view of them, and on what they were computed from."""
    linear = nn.Linear(2, 2).double()
    linear.weight.data, linear.bias.data = (
        torch.zeros(2, 2).double(),
        torch.tensor([1.0, 0.0]).double(),
    )

    def on_logits(x):
        logits = linear(x)
        logits[:, 1] += 100 * x[:, 0]
        return logits

    def on_a_view(x):
        logits = linear(x)
        logits.view(-1, 2)[:, 0].sub_(100 * x[:, 0])
        return logits

    def on_their_source(x):
        x = x + 0
        logits = x @ torch.eye(2).double() + linear.bias  # class 0 is ahead
        x.mul_(0)
        return logits

    x = torch.zeros(1, 2).double()
    for function in (on_logits, on_a_view):
        assert not prove(Function(function), x - 0.1, x + 0.1, torch.tensor([0])).is_proved.any()
        assert prove(Function(function), x - 1e-9, x + 1e-9, torch.tensor([0])).is_proved.all()
    assert not prove(Function(on_their_source), x - 2, x + 2, torch.tensor([0])).is_proved.any()


def test_a_model_that_does_not_look_at_its_input_is_proved():
    logits = torch.tensor([1.0, 3.0, 2.0])
    model = Function(lambda x: logits.expand(len(x), 3))
    x = torch.zeros(2, 6)
    proof = prove(model, x - 1, x + 1, torch.tensor([1, 2]))
    assert proof.is_proved.tolist() == [True, False]
    logits[2] = 3
    assert not prove(model, x - 1, x + 1, torch.tensor([1, 2])).is_proved.any()


@pytest.mark.parametrize("name", ["abs", "log1p", "power 0.5", "scaled", "tanh"])
def test_bounds_hold_where_the_model_takes_small_numbers_for_zero(name):
    """But for operators that do not compute, such as relu; what comes after allows for it."""
    low = torch.tensor([1e-40, 1e-39, 2e-38, 0.0])
    high = low * 1.5
    bounds = bounds_of(CURVES[name], low, high)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not do so")
    try:
        values = [CURVES[name](x).clone() for x in (low, high)]
    finally:
        torch.set_flush_denormal(False)
    for value in values:
        assert (bounds.lower <= value.double()).all()
        assert (value.double() <= bounds.upper).all()


@contextmanager
def setting(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_products_of_less_precision_are_unsupported(monkeypatch):
    model, x = nn.Linear(6, CLASSES), torch.zeros(3, 6)
    image, conv = torch.zeros(3, *IMAGE), network(nn.Conv2d(2, 4, 3), features=64)
    assert prove(model, x, x).unsupported is None
    with setting(torch.backends, "fp32_precision", "tf32"):
        assert re.search("rounds float32 to tf32", prove(model, x, x).unsupported or "")
        assert re.search("rounds float32 to tf32", prove(conv, image, image).unsupported or "")
        model.double()
        assert prove(model, x.double(), x.double()).unsupported is None
        model.float()
    with monkeypatch.context() as changed:
        changed.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
        assert re.search("DNNL_DEFAULT_FPMATH_MODE=BF16", prove(model, x, x).unsupported or "")
    with torch.autocast("cpu"):
        assert re.search("bfloat16", prove(model, x, x).unsupported or "")
    with torch.backends.mkldnn.flags(enabled=False):
        assert re.search("NNPACK", prove(conv, image, image).unsupported or "")
    assert re.search("float16", prove(model.half(), x.half(), x.half()).unsupported or "")


def test_convolutions_of_cudnn_are_unsupported():
    """A GPU is not needed to say so: the device is all that is looked at."""
    cuda = torch.device("cuda")
    with pytest.raises(UnsupportedError, match="runs in cuDNN"):
        refuse_inexact_products(Rounding(torch.float64), cuda, "conv")
    with torch.backends.cudnn.flags(enabled=False):
        refuse_inexact_products(Rounding(torch.float32), cuda, "conv")
        with (
            setting(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
            pytest.raises(UnsupportedError, match="tf32"),
        ):
            refuse_inexact_products(Rounding(torch.float32), cuda, "conv")
    refuse_inexact_products(Rounding(torch.float32), cuda, "matmul")
    with pytest.raises(UnsupportedError, match="runs on mps"):
        refuse_inexact_products(Rounding(torch.float32), torch.device("mps"), "matmul")
