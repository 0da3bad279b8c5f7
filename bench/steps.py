"""What is measured on a problem, beside the peers: a plain training step and memtools."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from bench.problems import Problem


def plain(problem: Problem) -> None:
    """The forward and backward pass of a training step."""
    problem.model.zero_grad()
    F.cross_entropy(problem.model(problem.inputs), problem.targets).backward()


def parameters(problem: Problem) -> tuple[Tensor, ...]:
    model, inputs, targets = problem[1:]
    return (memtools.parameter_gradient_norms(model, inputs, targets),)


def inputs(problem: Problem) -> tuple[Tensor, ...]:
    model, inputs, targets = problem[1:]
    return (memtools.input_gradient_norms(model, inputs, targets),)


def both(problem: Problem) -> tuple[Tensor, ...]:
    model, inputs, targets = problem[1:]
    name = None if inputs.is_floating_point() else _embedding(model)[0]
    norms = memtools.gradient_norms(model, inputs, targets, embedding=name)
    return (norms.parameters, norms.inputs)


def _embedding(model: nn.Module) -> tuple[str, nn.Module]:
    return next(named for named in model.named_modules() if isinstance(named[1], nn.Embedding))


def reference(problem: Problem) -> tuple[Tensor, Tensor]:
    """Norms of the parameter and of the input gradients, in float64, an example at a time."""
    model = copy.deepcopy(problem.model).double()
    weights = [p for p in model.parameters() if p.requires_grad]
    looked_up: list[Tensor] = []
    tokens = not problem.inputs.is_floating_point()

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        looked_up.append(output)

    if tokens:
        _embedding(model)[1].register_forward_hook(note)
    norms = []
    for x, y in zip(problem.inputs.split(1), problem.targets.split(1), strict=True):
        x = x if tokens else x.double().requires_grad_()
        loss = F.cross_entropy(model(x), y)
        of_input, *gradients = torch.autograd.grad(loss, [looked_up[-1] if tokens else x, *weights])
        of_weights = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        norms.append(torch.stack([of_weights, of_input.abs().sum()]))
    of_weights, of_inputs = torch.stack(norms).unbind(1)
    return of_weights, of_inputs
