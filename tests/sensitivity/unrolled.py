"""Loss sensitivity from its definition: a whole training as one graph, and by training anew.

Nothing here comes from memtools. A training is a plain loop over the updates as PyTorch's
documentation states them; the derivative of a later loss is one call of autograd through all of it.
"""

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def cross_entropy(logits, y):
    """From the definition."""
    return logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]


class BatchNorm(nn.Module):
    """As PyTorch's, but for running statistics that autograd can go through."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, original):
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(original, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(original, name))
        self.eps, self.momentum, self.training = original.eps, original.momentum, original.training

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        over = [d for d in range(x.ndim) if d != 1]
        if self.training:
            mean, variance = x.mean(over), x.var(over, unbiased=False)
            count = x.numel() / x.shape[1]
            self.num_batches_tracked = self.num_batches_tracked + 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean = (1 - rate) * self.running_mean + rate * mean
            unbiased = variance * count / (count - 1)
            self.running_var = (1 - rate) * self.running_var + rate * unbiased
        shape = [1, -1] + [1] * (x.ndim - 2)
        scaled = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        return scaled * self.weight.view(shape) + self.bias.view(shape)


def differentiable(model):
    """A copy whose BatchNorm is our own, each module in the mode it was in."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, BatchNorm(module))
    return model


def sgd(w, g, state, o):
    g = (-g if o["maximize"] else g) + o["weight_decay"] * w
    if o["momentum"]:
        velocity = state.get("momentum_buffer")
        first = velocity is None
        velocity = g if first else o["momentum"] * velocity + (1 - o["dampening"]) * g
        state = {"momentum_buffer": velocity}
        g = g + o["momentum"] * velocity if o["nesterov"] else velocity
    return w - o["lr"] * g, state


def root(v):
    """Square root with the derivative 0 at 0, where the gradient and so its square is 0."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


def adam(w, g, state, o):
    (beta1, beta2), lr = o["betas"], o["lr"]
    g = -g if o["maximize"] else g
    if o.get("decoupled_weight_decay"):
        w = w - lr * o["weight_decay"] * w
    else:
        g = g + o["weight_decay"] * w
    zeros = torch.zeros_like(w)
    step = float(state.get("step", 0)) + 1
    m = beta1 * state.get("exp_avg", zeros) + (1 - beta1) * g
    v = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * g * g
    new = {"step": step, "exp_avg": m, "exp_avg_sq": v}
    if o["amsgrad"]:
        largest = state.get("max_exp_avg_sq", zeros)
        new["max_exp_avg_sq"] = v = torch.where(v > largest, v, largest)
    unbiased = root(v) / math.sqrt(1 - beta2**step)
    return w - lr / (1 - beta1**step) * m / (unbiased + o["eps"]), new


def adamw(w, g, state, o):
    return adam(w, g, state, {**o, "decoupled_weight_decay": True})


def each(rule):
    """An update of all weights from the rule for one."""

    def update(weights, gradients, state, settings):
        weights, state = dict(weights), copy.copy(state)
        for name, g in gradients.items():
            own = {key: tensors[name] for key, tensors in state.items() if name in tensors}
            weights[name], own = rule(weights[name], g, own, settings[name])
            for key, value in own.items():
                state[key] = {**state.get(key, {}), name: value}
        return weights, state

    return update


UPDATES = {"SGD": each(sgd), "Adam": each(adam), "AdamW": each(adamw)}


class Unrolled:
    """A training in one graph that begins at the inputs and at a weight of 1 for each example.

    Args:
        model: Before its first update.
        x: Inputs of the data set.
        y: Its targets.
        batches: Indices of each update.
        update: ``update(weights, gradients, state, settings)``, by names of parameters.
        settings: Of each update: options of each parameter that it trains, by name.
        random_states: Of torch before the forward pass of each update.
        modes: Of each update: whether each module was in train mode.
        loss: Losses of the examples, from logits and targets.
        reduction: How they join in a batch.
        cut: The graph begins at the weights after so many updates, whatever went before.
        state: Of the optimiser before the first update.
        keep_gradients: Whether a weight that had a gradient once has one of zeros later on.
    """

    def __init__(
        self,
        model,
        x,
        y,
        batches,
        update,
        settings,
        random_states,
        modes,
        *,
        loss=cross_entropy,
        reduction="mean",
        cut=0,
        state=None,
        keep_gradients=False,
    ):
        self.y, self.loss = y, loss
        self.x = x.clone().requires_grad_()
        self.share = torch.ones(len(x), dtype=x.dtype).requires_grad_()
        self.model = differentiable(model)
        self.evaluated = differentiable(model).eval()
        weights = {n: p.detach() for n, p in model.named_parameters()}
        buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        state, seen = state or {}, set()
        self.steps = [(weights, buffers)]
        for t, batch in enumerate(batches, 1):
            if t - 1 <= cut:
                weights, buffers, state = detached(weights), detached(buffers), detached(state)
                weights = {n: w.requires_grad_() for n, w in weights.items()}
            torch.set_rng_state(random_states[t - 1])
            for module, mode in zip(self.model.modules(), modes[t - 1], strict=True):
                module.training = mode
            buffers, trained = dict(buffers), list(settings[t - 1])
            logits = call(self.model, weights, buffers, self.x[batch])
            losses = self.share[batch] * loss(logits, y[batch])
            total = losses.mean() if reduction == "mean" else losses.sum()
            found = torch.autograd.grad(
                total, [weights[n] for n in trained], create_graph=True, allow_unused=True
            )
            gradients = {n: g for n, g in zip(trained, found, strict=True) if g is not None}
            if keep_gradients:
                seen |= gradients.keys()
                gradients = {n: gradients.get(n, torch.zeros_like(weights[n])) for n in seen}
            weights, state = update(weights, gradients, state, settings[t - 1])
            self.steps.append((weights, buffers))
        if cut >= len(batches):
            self.steps[-1] = detached(weights), detached(buffers)

    def losses(self, t, x, y):
        """Of examples after t updates, in eval mode."""
        weights, buffers = self.steps[t]
        return self.loss(call(self.evaluated, weights, dict(buffers), x), y)

    def gradient(self, t, part="total", objective=None, only=None):
        """Of the loss after t updates to all inputs, ``(n, ...)``; of the terms of one class."""
        inside = self.x.detach().clone().requires_grad_()
        x, y = (inside, self.y) if objective is None else objective
        losses = self.losses(t, x, y)
        value = (losses if only is None else losses[y == only]).sum() / len(y)
        direct, indirect = to(value, inside), to(value, self.x)
        return {"direct": direct, "indirect": indirect, "total": direct + indirect}[part]

    def signed(self, t, objective=None):
        """Derivative of the loss after t updates to the weight of each example, ``(n,)``."""
        x, y = (self.x.detach(), self.y) if objective is None else objective
        return to(self.losses(t, x, y).mean(), self.share)


def call(model, weights, buffers, x):
    """The model under these tensors; new buffers go into the dict."""
    tensors = weights | buffers
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        output = functional_call(model, tensors, (x * 1,))
    buffers.update({n: tensors[n] for n in buffers})
    return output


def to(value, leaf):
    """Derivative of a number, 0 if it does not depend on the leaf."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (g,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if g is None else g


def detached(tree) -> Any:
    if isinstance(tree, dict):
        return {key: detached(value) for key, value in tree.items()}
    return tree.detach() if isinstance(tree, torch.Tensor) else tree


def norms(gradients, p):
    """``(..., n)`` from a list of ``(n, ...)``."""
    size = torch.stack(list(gradients)).flatten(2).abs()
    if not size.shape[2]:
        return size.sum(2)
    return {1: size.sum(2), 2: size.square().sum(2).sqrt(), math.inf: size.amax(2)}[p]


def loss_sensitivity(run, at, *, part="total", p=1, objective=None):
    return norms([run.gradient(t, part, objective) for t in at], p)


def per_class(run, at, classes, *, part="total", p=1):
    """Mean over times and the examples of class j, of the norms for the terms of class i."""
    rows = []
    for i in range(classes):
        found = norms([run.gradient(t, part, only=i) for t in at], p)
        rows.append(torch.stack([found[:, run.y == j].mean() for j in range(classes)]))
    return torch.stack(rows)


def difference(retrain, x, element, h=1e-5):
    """Central differences of the losses after each update, by one element of the inputs.

    Args:
        retrain: A function that trains on other inputs and gives the loss after each update.
        x: Inputs of the data set.
        element: Which of their numbers is moved.
        h: By how much.

    Returns:
        Shape ``(T + 1,)``.
    """
    losses = []
    for step in (h, -h):
        moved = x.clone()
        moved[element] += step
        losses.append(retrain(moved))
    return (losses[0] - losses[1]) / (2 * h)
