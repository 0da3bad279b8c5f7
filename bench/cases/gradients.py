"""Norms of every example's gradient, and the sensitivity of each class's loss term."""

# Where a peer is not installed, a type checker cannot find it either.
# pyright: reportMissingImports=false

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from bench import peers, steps
from bench.cases.operation import Operation, Run, Sizes, Way, compiled
from bench.problems import CLASSES, PROBLEMS, Problem


def shortened(name: str, size: int) -> Problem:
    """The problem of that name with the first examples of its batch."""
    problem = PROBLEMS[name]()
    return problem._replace(inputs=problem.inputs[:size], targets=problem.targets[:size])


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def loss_of_one(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    logits = torch.func.functional_call(model, weights, (x.unsqueeze(0),))
    return F.cross_entropy(logits, y.unsqueeze(0))


def by_function(function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Way:
    """An implementation that is a function of a model and a batch."""

    def prepare(problem: Problem) -> Run:
        return partial(function, problem.model, problem.inputs, problem.targets)

    return prepare


# Parameters


def goodfellow(problem: Problem) -> Run:
    """Goodfellow's trick by hooks, as written for a network of linear layers on vectors."""
    _, model, inputs, targets = problem
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    squares: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        of_input = arguments[0].square().sum(1) + 1  # the bias
        output.register_hook(lambda g: squares.__setitem__(layer, of_input * g.square().sum(1)))

    def run() -> Tensor:
        handles = [layer.register_forward_hook(note) for layer in layers]
        loss = F.cross_entropy(model(inputs), targets, reduction="sum")
        torch.autograd.grad(loss, list(model.parameters()))
        for handle in handles:
            handle.remove()
        return torch.stack(list(squares.values())).sum(0).sqrt()

    return run


def compiled_norms(problem: Problem) -> Run:
    _, model, inputs, targets = problem
    weights = weights_of(model)

    def norm(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        gradients = torch.func.grad(loss_of_one, argnums=1)(model, weights, x, y)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()

    norms = compiled(torch.func.vmap(norm, in_dims=(None, 0, 0)))
    return lambda: norms(weights, inputs, targets)


OF_PARAMETERS: dict[str, Way] = {
    "memtools": by_function(memtools.parameter_gradient_norms),
    "eager": goodfellow,
    "naive loop": peers.PEERS["loop"],
    "torch.compile": compiled_norms,
    **{name: peer for name, peer in peers.PEERS.items() if name not in ("loop", "fastdp")},
}


# Inputs


def input_norms_by_sum(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """One backward pass of the sum of the losses."""
    x = inputs.detach().requires_grad_()
    loss = F.cross_entropy(model(x), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.flatten(1).abs().sum(1)


def input_norms_by_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = [
        input_norms_by_sum(model, x, y)
        for x, y in zip(inputs.split(1), targets.split(1), strict=True)
    ]
    return torch.cat(norms)


def input_norms_by_vmap(problem: Problem) -> Run:
    _, model, inputs, targets = problem
    weights = weights_of(model)
    gradients = torch.func.vmap(
        torch.func.grad(partial(loss_of_one, model), argnums=1), in_dims=(None, 0, 0)
    )
    return lambda: gradients(weights, inputs, targets).flatten(1).abs().sum(1)


def input_norms_compiled(problem: Problem) -> Run:
    _, model, inputs, targets = problem
    weights = weights_of(model)

    def loss(x: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (x,))
        return F.cross_entropy(logits, targets, reduction="sum")

    norms = compiled(lambda x: torch.func.grad(loss)(x).flatten(1).abs().sum(1))
    return lambda: norms(inputs)


def saliency(problem: Problem) -> Run:
    """Captum's ``Saliency`` of the loss of every example."""
    from captum.attr import Saliency

    _, model, inputs, targets = problem
    method = Saliency(lambda x: F.cross_entropy(model(x), targets, reduction="none"))
    return lambda: method.attribute(inputs.clone().requires_grad_()).flatten(1).sum(1)


def art_gradient(problem: Problem) -> Run:
    """``loss_gradient`` of ART's classifier."""
    from art.estimators.classification import PyTorchClassifier

    _, model, inputs, targets = problem
    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(inputs.shape[1:]),
        nb_classes=CLASSES,
        device_type="cpu",
    )
    x, labels = inputs.numpy(), F.one_hot(targets, CLASSES).numpy()

    def run() -> Tensor:
        return torch.from_numpy(classifier.loss_gradient(x, labels)).flatten(1).abs().sum(1)

    return run


OF_INPUTS: dict[str, Way] = {
    "memtools": by_function(memtools.input_gradient_norms),
    "eager": by_function(input_norms_by_sum),
    "naive loop": by_function(input_norms_by_loop),
    "vmap": input_norms_by_vmap,
    "torch.compile": input_norms_compiled,
    "captum": saliency,
    "ART": art_gradient,
}


# Classes


def by_class(norms: Tensor, targets: Tensor) -> Tensor:
    """Means over the examples of each class; from and to a row for each loss term."""
    members = F.one_hot(targets, len(norms)).to(norms)
    return norms @ members / members.sum(0)


def classes_by_sums(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """A backward pass for each class."""
    x = inputs.detach().requires_grad_()
    terms = -F.log_softmax(model(x), 1).sum(0)
    gradients = [torch.autograd.grad(term, x, retain_graph=True)[0] for term in terms]
    return by_class(torch.stack(gradients).flatten(2).abs().sum(2), targets)


def classes_by_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    columns = []
    for one in inputs.split(1):
        x = one.detach().requires_grad_()
        terms = -F.log_softmax(model(x), 1)[0]
        gradients = [torch.autograd.grad(term, x, retain_graph=True)[0] for term in terms]
        columns.append(torch.stack([g.abs().sum() for g in gradients]))
    return by_class(torch.stack(columns, 1), targets)


def jacobians(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Of the loss terms of every example."""
    model, weights = problem.model, weights_of(problem.model)

    def terms(x: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (x.unsqueeze(0),))
        return -F.log_softmax(logits, 1)[0]

    return torch.func.vmap(torch.func.jacrev(terms))


def classes_by_vmap(problem: Problem) -> Run:
    each = jacobians(problem)
    _, _, inputs, targets = problem
    return lambda: by_class(each(inputs).flatten(2).abs().sum(2).T, targets)


def classes_compiled(problem: Problem) -> Run:
    each = jacobians(problem)
    _, _, inputs, targets = problem
    matrix = compiled(lambda x: by_class(each(x).flatten(2).abs().sum(2).T, targets))
    return lambda: matrix(inputs)


def classes_by_captum(problem: Problem) -> Run:
    """Captum's ``Saliency`` of each loss term."""
    from captum.attr import Saliency

    _, model, inputs, targets = problem
    method = Saliency(lambda x: -F.log_softmax(model(x), 1))

    def run() -> Tensor:
        x = inputs.clone().requires_grad_()
        maps = [method.attribute(x, target=c).flatten(1).sum(1) for c in range(classes)]
        return by_class(torch.stack(maps), targets)

    classes = model(inputs[:1]).shape[1]
    return run


def classes_in_float64(problem: Problem) -> Tensor:
    return classes_by_loop(in_float64(problem.model), problem.inputs.double(), problem.targets)


OF_CLASSES: dict[str, Way] = {
    "memtools": by_function(memtools.class_sensitivity),
    "eager": by_function(classes_by_sums),
    "naive loop": by_function(classes_by_loop),
    "vmap": classes_by_vmap,
    "torch.compile": classes_compiled,
    "captum": classes_by_captum,
}


def in_float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


MLP = "MLP 784-512-512-10, batch 256"
OPERATIONS = {
    "parameter gradient norms, MLP": Operation(
        MLP,
        partial(shortened, "mlp"),
        Sizes(8, 256),
        lambda problem: steps.reference(problem)[0],
        1e-4,
        OF_PARAMETERS,
    ),
    "parameter gradient norms, encoder": Operation(
        "two transformer layers of width 128, 64 positions, batch 32",
        partial(shortened, "encoder"),
        Sizes(2, 32),
        lambda problem: steps.reference(problem)[0],
        1e-4,
        # The trick of the eager code is for vectors.
        {name: way for name, way in OF_PARAMETERS.items() if name != "eager"},
    ),
    "input gradient norms": Operation(
        MLP,
        partial(shortened, "mlp"),
        Sizes(8, 256),
        lambda problem: steps.reference(problem)[1],
        1e-4,
        OF_INPUTS,
    ),
    "class sensitivity": Operation(
        MLP,
        partial(shortened, "mlp"),
        Sizes(64, 256),
        classes_in_float64,
        1e-4,
        OF_CLASSES,
    ),
}
