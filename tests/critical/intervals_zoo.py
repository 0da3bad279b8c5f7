"""Models of which something is to be proved, the proof, and the search for what refutes it."""

import itertools
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from memtools.critical.intervals import _Propagation, prove_uncritical
from memtools.critical.ranges import Range
from memtools.guard import untouched

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


def is_refuted(model, low, high, predicted, *, points=50, steps=12):
    """Whether a point of another class was found: at random, in a corner, or uphill."""
    generator = torch.Generator().manual_seed(1)
    # Each example once for each class, to climb towards all of them at the same time.
    others = torch.arange(CLASSES).repeat_interleave(len(predicted))
    low, high, predicted = (torch.cat([t] * CLASSES) for t in (low, high, predicted))
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
        x = (low + high) / 2
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(forward(x))
                ahead = logits.gather(1, others[:, None]) - logits.gather(1, predicted[:, None])
                (gradient,) = torch.autograd.grad(ahead.sum(), x)
            look(torch.where(gradient > 0, high, low))
            x = torch.minimum(torch.maximum(x + width * gradient.sign() / 5, low), high)
            look(x.detach())
    return found.view(CLASSES, -1).any(0)


def bounds_of(function, low, high):
    """Bounds of what a function of a tensor gives."""
    propagation = _Propagation()
    ends = (end.to(torch.float64, copy=True) for end in (low, high))
    with torch.no_grad(), propagation:
        result = function(propagation.interval(Range(*ends), low.dtype))
    assert propagation.unsupported is None
    return result.bounds
