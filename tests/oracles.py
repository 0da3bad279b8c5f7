"""Obviously right versions of the metric functions: plain autograd, one example at a time."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


class _Roundings(TorchDispatchMode):
    """Adds up the lengths of the sums in all operators that run while it is active."""

    PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot")
    ONE_SUM = ("norm", "softmax", "rnn", "lstm", "gru", "attention", "embedding", "index", "pool")

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.total += self._length(func.overloadpacket.__name__, args, output)
        return output

    def _length(self, name, args, output):
        given = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
        made = output[0] if isinstance(output, tuple | list) else output
        if not given or not isinstance(made, torch.Tensor) or not made.is_floating_point():
            return 0
        if func_makes_no_sum(name):
            return 0
        if name in self.PRODUCTS:
            return given[-1].shape[-2 if given[-1].ndim > 1 else 0] + 1
        if name == "convolution":
            return given[1].numel() // min(given[1].shape[:2])
        if name == "convolution_backward":
            return given[0].numel() // given[0].shape[1] + given[2].numel() // min(
                given[2].shape[:2]
            )
        largest = max(a.numel() for a in given)
        if any(part in name for part in self.ONE_SUM):
            return largest
        return max(1, largest // max(1, made.numel()))


def func_makes_no_sum(name):
    """Whether an operator only moves numbers."""
    moves = ("view", "t", "transpose", "permute", "expand", "unsqueeze", "squeeze", "clone", "cat")
    return name.strip("_") in moves or any(p in name for p in ("select", "slice", "split", "copy"))


def rounding_tolerance(model, x, y, loss, dtype):
    """Relative bound on the rounding errors of the gradient norm of an example in a dtype.

    As :func:`float32_tolerance`, for any model: a sum of m terms is off by at most m eps relative
    to the sum of their sizes, and forward and backward are a chain of such sums. Their lengths are
    added up while an example goes through, and doubled as there, for cancellation.
    """
    with _Roundings() as roundings:
        value = loss(logits_of(copy.deepcopy(model), x[:1].clone()), y[:1])
        value.sum().backward()
    return 2 * torch.finfo(dtype).eps * roundings.total


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
    largest = torch.cat([size, size.new_zeros(1)]).max()  # 0 of an empty input
    return {1: size.sum(), 2: size.square().sum().sqrt(), math.inf: largest}[p]


def in_float64(model, inputs):
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return copy.deepcopy(model).double(), inputs


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
        value = loss(logits_of(fresh, x.clone()), y).sum()
        weights = [p for p in fresh.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        flat = [g.to_dense().flatten() for g in gradients if g is not None]
        norms.append(norm(torch.cat(flat), 2))
    return torch.stack(norms)


def embedding_gradient_norms(model, inputs, targets, embedding, loss=cross_entropy, p=1):
    """With respect to the output of the module of this name."""
    model, inputs = in_float64(model, inputs)
    norms = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        outputs = []
        fresh = copy.deepcopy(model)
        fresh.get_submodule(embedding).register_forward_hook(lambda m, a, o: outputs.append(o))  # noqa: B023
        value = loss(logits_of(fresh, x), y).sum()
        norms.append(norm(torch.autograd.grad(value, outputs[0])[0], p))
    return torch.stack(norms)


def class_sensitivity(model, inputs, targets, classes):
    rows = []
    for i in range(classes):
        to_class = torch.full_like(targets, i)
        norms = input_gradient_norms(model, inputs, to_class)
        rows.append(torch.stack([norms[targets == j].mean() for j in range(classes)]))
    return torch.stack(rows)


def lass(
    model,
    inputs,
    noise,
    alpha,
    beta,
    radius,
    max_steps,
    gradient_at,
    low=None,
    high=None,
    leads=None,
):
    """First steps (-1 where none) and points, from the quantity 4 of the paper.

    The noise of step s of example i is ``noise[s - 1][i]``. A list ``leads`` receives for each
    example the smallest distance from a tie at the points it tried, over the largest logit.
    """
    first_steps, points = [], []
    for number, x in enumerate(inputs.split(1)):
        predicted = logits_of(model, x.clone()).argmax(1)
        point, found, nearest = x, -1, math.inf
        for step in range(1, max_steps + 1):
            at = (point if gradient_at == "moving" else x).clone().requires_grad_()
            loss = cross_entropy(logits_of(model, at.clone()), predicted).sum()
            (g,) = torch.autograd.grad(loss, at)
            point = point + alpha * g.sign() + beta * noise[step - 1][number]
            point = torch.minimum(torch.maximum(point, x - radius), x + radius)
            if low is not None:
                point = point.clamp(low, high)
            logits = logits_of(model, point.clone()).detach()
            nearest = min(nearest, abs(lead(logits, predicted)) / logits.abs().max())
            if logits.argmax(1) != predicted:
                found = step
                break
        first_steps.append(found)
        points.append(point if found != -1 else x)
        if leads is not None:
            leads.append(float(nearest))
    return torch.tensor(first_steps), torch.cat(points)


def lead(logits, predicted):
    """By how much the best other class is ahead of the predicted one, for one example."""
    (row,) = logits
    others = [value for k, value in enumerate(row) if k != int(predicted)]
    return float(max(others) - row[int(predicted)])
