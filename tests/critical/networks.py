"""Small trained networks, and what every search has to satisfy."""

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from memtools import find_critical

CLASSES = 5
RADII = {"MLP": 0.12, "memorised": 0.045, "CNN": 0.08, "residual": 0.14}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(36, 24), nn.Linear(24, 24)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.head(x + F.gelu(self.second(self.norm(x))))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(24, CLASSES),
    )  # fmt: skip


def mlp(d=36, classes=CLASSES, width=24):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, classes),
    )  # fmt: skip


@cache
def _trained(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        centres = torch.rand(CLASSES, 1, 6, 6)
        targets = torch.arange(150) % CLASSES
        inputs = (centres[targets] + 0.35 * torch.randn(150, 1, 6, 6)).clamp(0, 1)
        if name == "memorised":
            targets = targets[torch.randperm(150)]
        model = {"MLP": mlp, "memorised": mlp, "CNN": cnn, "residual": Residual}[name]()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150 if name == "memorised" else 40):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model.eval().requires_grad_(True), inputs


def trained(name):
    """Model, inputs in [0, 1], and a radius at which some of them are critical and others not."""
    model, inputs = _trained(name)
    return copy.deepcopy(model), inputs[:60].clone(), RADII[name]


class _Counts(torch.autograd.Function):
    """Hands the example numbers over when a backward pass comes by."""

    @staticmethod
    def forward(ctx, x, numbers, backward):
        ctx.numbers, ctx.backward = numbers, backward
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        ctx.backward.append(ctx.numbers)
        return grads[0], None, None


class Counted(nn.Module):
    """Counts the passes of each example: the first element of an example is its number.

    It is never moved where the radius for it is 0, see :func:`numbered`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.passes = []

    def forward(self, x):
        numbers = x[:, 0].detach().round().long()
        self.passes.append(numbers)
        if x.requires_grad:
            x = _Counts.apply(x, numbers, self.passes)
        return self.model(x[:, 1:])

    def total(self):
        return sum(len(numbers) for numbers in self.passes)

    def of_each(self, n, at_least=0):
        """Passes of each example, from the first one with so many examples on."""
        begin = next(k for k, numbers in enumerate(self.passes) if len(numbers) >= at_least)
        return torch.bincount(torch.cat(self.passes[begin:]), minlength=n)


def numbered(inputs, radius):
    """Inputs and radius for :class:`Counted`."""
    flat = inputs.flatten(1)
    numbers = torch.arange(len(flat), dtype=flat.dtype)[:, None]
    radii = torch.full((flat.shape[1] + 1,), radius, dtype=flat.dtype)
    radii[0] = 0
    return torch.cat([numbers, flat], 1), radii


def search(method, model, inputs, radius, **options: Any):
    """A search of a dozen steps by LASS, and a whole one by the other method."""
    options = ({"max_steps": 12} if method == "lass" else {}) | options
    return find_critical(model, inputs, radius=radius, method=method, **options)


def lead_over(logits, predicted):
    """Lead of the best other class, and the largest logit, each (n,) in float64."""
    logits = logits.double()
    own = logits.gather(1, predicted[:, None])[:, 0]
    others = logits.scatter(1, predicted[:, None], -torch.inf).amax(1)
    return others - own, logits.abs().amax(1)


def assert_sound(model, inputs, search, radius, bounds=(-torch.inf, torch.inf)):
    """What is reported is in the box exactly, in the bounds, and truly of another class."""
    found = search.is_critical
    assert search.points.dtype == inputs.dtype
    assert search.points.shape == inputs.shape
    assert torch.equal(search.points[~found], inputs[~found])
    assert torch.equal(found, search.first_step >= 1)
    assert torch.equal(search.first_step[~found], torch.full_like(search.first_step[~found], -1))
    assert bool((search.first_step <= search.max_steps).all())
    radius = torch.as_tensor(radius, dtype=inputs.dtype)
    assert bool(((search.points - inputs).abs() <= radius).all())
    low, high = (torch.as_tensor(bound, dtype=inputs.dtype) for bound in bounds)
    assert bool(((low <= search.points) & (search.points <= high)).all())
    if not bool(found.any()):
        return
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = model(search.points[found].clone())
        alone = torch.cat([model(x.clone()) for x in search.points[found].split(1)])
        exact = copy.deepcopy(model).double()(search.points[found].double())
    for values in (logits, alone, exact):
        values = getattr(values, "logits", values)
        lead, _ = lead_over(values, search.predicted[found])
        assert bool((lead > 0).all())
    lead, largest = lead_over(logits, search.predicted[found])
    # Measured in another batch than the search's own, a lead may be off by what was seen of
    # rounding, of which the bound is four times.
    assert bool((lead > 0.75 * search.rounding * largest).all())
