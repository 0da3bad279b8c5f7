"""The eager reference of loss sensitivity: autograd through one graph of the whole training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from memtools import TrainingTape, data, models

LEARNING_RATE = 0.1
BATCH = 50
EXAMPLES = 1000
SIDE = 14


class Training(NamedTuple):
    """A training by plain SGD: the paper's network for loss sensitivity, on real images."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    batches: list[Tensor]


def paper(updates: int) -> Training:
    """TinyMLP of 2 x 16 units on 1,000 digits of 14x14, in batches of 50."""
    torch.manual_seed(0)
    train = data.in_memory(data.load("digits", train_size=EXAMPLES).train)
    inputs = F.interpolate(train.inputs, size=(SIDE, SIDE), mode="bilinear")
    model = models.TinyMLP((1, SIDE, SIDE), 10)
    batches: list[Tensor] = []
    while len(batches) < updates:
        batches += torch.randperm(EXAMPLES).split(BATCH)
    return Training(model, inputs, train.targets, batches[:updates])


def recorded(training: Training, every: int = 1) -> TrainingTape:
    """Train from where the model is, and record it; the model ends as it began."""
    model, inputs, targets, batches = training
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    tape = TrainingTape(model, optimizer, every=every)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        tape.record(batch)
        optimizer.step()
    tape.close()
    with torch.no_grad():
        for p, before in zip(model.parameters(), start, strict=True):
            p.copy_(before)
    return tape


def one_graph(training: Training, updates: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The inputs, and the weights after each update as functions of them."""
    model, inputs, targets, batches = training
    x = inputs.clone().requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    history = [weights]
    for batch in batches[:updates]:
        loss = F.cross_entropy(functional_call(model, weights, (x[batch],)), targets[batch])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {
            name: w - LEARNING_RATE * g
            for (name, w), g in zip(weights.items(), gradients, strict=True)
        }
        history.append(weights)
    return x, history


def unrolled(training: Training, times: Sequence[int]) -> Tensor:
    """One graph through all updates, and one sweep back for each evaluation time."""
    x, history = one_graph(training, max(times))
    rows = []
    for time in times:
        logits = functional_call(training.model, history[time], (x,))
        loss = F.cross_entropy(logits, training.targets)
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        rows.append(gradient.flatten(1).abs().sum(1))
    return torch.stack(rows)
