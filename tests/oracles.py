"""Obviously right versions of the metric functions: plain autograd, one example at a time."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

EPS32 = torch.finfo(torch.float32).eps
FLOAT64 = 1e-10
"""Relative tolerance in float64: 10^5 roundings and more."""


def float32_tolerance(model: nn.Module, steps: int = 7) -> float:
    """Relative bound on the rounding errors of a gradient norm in float32.

    A sum of m terms is off by at most m eps relative to the sum of their sizes. Forward and
    backward go once each through every weight, over its rows and its columns; a recurrent weight
    does so at each step. Linear in the length, and not its square root as for random signs, so
    that there is room for the elementwise operations and for cancellation.
    """
    length = sum(p.shape[0] + p[0].numel() for p in model.parameters() if p.ndim > 1)
    repeated = any(isinstance(m, nn.LSTM) for m in model.modules())
    return 2 * EPS32 * length * (steps if repeated else 1)


def logits_of(model, x):
    output = model(x)
    return getattr(output, "logits", output)


def cross_entropy(logits, y):
    """From the definition, over class numbers or probabilities."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    y = y if y.is_floating_point() else F.one_hot(y, logits.shape[1])
    return -(log_p * y).sum(1)


def norm(gradient, p):
    size = gradient.flatten().abs()
    return {1: size.sum(), 2: size.square().sum().sqrt(), math.inf: size.max()}[p]


def in_float64(model, inputs):
    return copy.deepcopy(model).double(), inputs.double()


def input_gradient_norms(model, inputs, targets, loss=cross_entropy, p=1):
    model, inputs = in_float64(model, inputs)
    norms = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        x = x.clone().requires_grad_()
        # A fresh copy each, since a forward pass may write into buffers.
        value = loss(logits_of(copy.deepcopy(model), x * 1), y)
        norms.append(norm(torch.autograd.grad(value.sum(), x)[0], p))
    return torch.stack(norms)


def parameter_gradient_norms(model, inputs, targets, loss=cross_entropy):
    model, inputs = in_float64(model, inputs)
    norms = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        fresh = copy.deepcopy(model)
        loss(logits_of(fresh, x.clone()), y).sum().backward()
        gradients = [p.grad.flatten() for p in fresh.parameters() if p.grad is not None]
        norms.append(norm(torch.cat(gradients), 2))
    return torch.stack(norms)


def class_sensitivity(model, inputs, targets, classes):
    rows = []
    for i in range(classes):
        to_class = torch.full_like(targets, i)
        norms = input_gradient_norms(model, inputs, to_class)
        rows.append(torch.stack([norms[targets == j].mean() for j in range(classes)]))
    return torch.stack(rows)


def lass(
    model, inputs, alpha, beta, radius, max_steps, gradient_at, generator, low=None, high=None
):
    """First steps (-1 where none) and points, from the quantity 4 of the paper.

    The noise of a step is drawn for all examples together, whoever still takes part.
    """
    noise = [
        torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype) for _ in range(max_steps)
    ]
    first_steps, points = [], []
    for number, x in enumerate(inputs.split(1)):
        predicted = model(x).argmax(1)
        point, found = x, -1
        for step in range(1, max_steps + 1):
            at = (point if gradient_at == "moving" else x).clone().requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(at), predicted).sum(), at)
            point = point + alpha * g.sign() + beta * noise[step - 1][number]
            point = torch.minimum(torch.maximum(point, x - radius), x + radius)
            if low is not None:
                point = point.clamp(low, high)
            if model(point).argmax(1) != predicted:
                found = step
                break
        first_steps.append(found)
        points.append(point if found != -1 else x)
    return torch.tensor(first_steps), torch.cat(points)
