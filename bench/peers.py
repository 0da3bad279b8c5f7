"""How other tools compute the norm of each example's gradient, each as its users would.

A peer prepares a deep copy of a problem's model once and returns what one full computation on the
batch is. What a tool cannot do raises; parameters that it leaves out are left out here too.
"""

# Where a peer is not installed, a type checker cannot find it either.
# pyright: reportMissingImports=false

import contextlib
import copy
import io
import types
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from bench.problems import Problem

Norms = Callable[[], Tensor]
Peer = Callable[[Problem], Norms]


def _add(block: BasicBlock, x: Tensor) -> Tensor:
    """What the residual block computes, without an in-place sum."""
    y = block.relu(block.bn1(block.conv1(x)))
    y = block.bn2(block.conv2(y))
    return block.relu(y + (x if block.downsample is None else block.downsample(x)))


def _copy(problem: Problem) -> nn.Module:
    """A copy of the model without in-place operations, which hooks on modules do not allow."""
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif isinstance(module, BasicBlock):
            module.forward = types.MethodType(_add, module)
    return model


def _norms(gradients: Iterable[Tensor]) -> Tensor:
    """Norms over all parameters of gradients of shape ``(n, *shape of the parameter)``."""
    return torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)


def loop(problem: Problem) -> Norms:
    """``torch.autograd.grad`` of one example at a time."""
    model = copy.deepcopy(problem.model)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> Tensor:
        norms = []
        for x, y in zip(problem.inputs.split(1), problem.targets.split(1), strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
            norms.append(torch.stack([g.norm() for g in gradients]).norm())
        return torch.stack(norms)

    return run


def _vmap(problem: Problem, chunk_size: int | None) -> Norms:
    model = copy.deepcopy(problem.model)
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    def norm(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(parameters, x, y)
        return torch.stack([g.norm() for g in gradients.values()]).norm()

    norms = torch.func.vmap(
        norm, in_dims=(None, 0, 0), randomness="different", chunk_size=chunk_size
    )
    return lambda: norms(parameters, problem.inputs, problem.targets)


def vmap(problem: Problem) -> Norms:
    """``torch.func.vmap`` of ``torch.func.grad`` over the whole batch."""
    return _vmap(problem, None)


def vmap_chunked(problem: Problem) -> Norms:
    """``torch.func.vmap`` of ``torch.func.grad`` over 8 examples at a time."""
    return _vmap(problem, 8)


def expanded_weights(problem: Problem) -> Norms:
    """Gradients per example from PyTorch's expanded weights."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    model = copy.deepcopy(problem.model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    n = len(problem.inputs)

    def run() -> Tensor:
        for p in parameters:
            p.grad_sample = None  # type: ignore[attr-defined]
        logits = call_for_per_sample_grads(model, batch_size=n)(problem.inputs)
        F.cross_entropy(logits, problem.targets, reduction="sum").backward()
        return _norms(p.grad_sample for p in parameters)  # type: ignore[attr-defined]

    return run


def _for_opacus(problem: Problem) -> nn.Module:
    """Opacus wants its own attention layers; its fix for BatchNorm would be another model."""
    from opacus.validators import ModuleValidator

    model = _copy(problem)
    attention = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    return ModuleValidator.fix(model) if attention else model


def opacus_hooks(problem: Problem) -> Norms:
    """Gradients per example from Opacus' ``GradSampleModule``."""
    from opacus import GradSampleModule

    model = GradSampleModule(_for_opacus(problem), loss_reduction="sum")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> Tensor:
        model.zero_grad()
        logits = model(problem.inputs)
        F.cross_entropy(logits, problem.targets, reduction="sum").backward()
        return _norms(p.grad_sample for p in parameters)  # type: ignore[attr-defined]

    return run


def opacus_ghost(problem: Problem) -> Norms:
    """Norms from the first of the two backward passes of Opacus' ghost clipping."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = GradSampleModuleFastGradientClipping(_for_opacus(problem), loss_reduction="sum")

    def run() -> Tensor:
        model.zero_grad()
        logits = model(problem.inputs)
        F.cross_entropy(logits, problem.targets, reduction="sum").backward()
        return model.get_norm_sample()

    return run


def backpack(problem: Problem) -> Norms:
    """Squared norms from BackPACK's ``BatchL2Grad``."""
    from backpack import backpack, extend  # type: ignore[import-not-found]
    from backpack.extensions import BatchL2Grad  # type: ignore[import-not-found]

    model = extend(_copy(problem))
    loss_function = extend(nn.CrossEntropyLoss(reduction="sum"))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> Tensor:
        model.zero_grad()
        with backpack(BatchL2Grad()):
            loss_function(model(problem.inputs), problem.targets).backward()
        return torch.stack([p.batch_l2 for p in parameters]).sum(dim=0).sqrt()  # type: ignore[attr-defined]

    return run


def captum(problem: Problem) -> Norms:
    """Gradients per example from the trick behind Captum's fast TracIn."""
    from captum._utils.gradient import _compute_jacobian_wrt_params_with_sample_wise_trick

    model = _copy(problem)
    loss_function = nn.CrossEntropyLoss(reduction="sum")

    def run() -> Tensor:
        model.zero_grad()
        return _norms(
            _compute_jacobian_wrt_params_with_sample_wise_trick(
                model, (problem.inputs,), problem.targets, loss_function, "sum"
            )
        )

    return run


def fastdp(problem: Problem) -> Norms:
    """Norms from fastDP's mixed book-keeping, without the clipping that follows.

    Its ghost differentiation is on: the backward pass computes the gradient of one parameter of
    the first layer only. A clipping block that no layer heads keeps the norms on the parameters.
    """
    from fastDP import PrivacyEngine  # type: ignore[import-not-found]

    model = _copy(problem)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weight, bias = named[0][0], named[1][0]
    origin = bias if bias.endswith("bias") else weight
    n = len(problem.inputs)
    with contextlib.redirect_stdout(io.StringIO()):
        engine = PrivacyEngine(
            model,
            batch_size=n,
            sample_size=n,
            epochs=1,
            noise_multiplier=0.0,
            clipping_mode="MixOpt",
            clipping_style=["none"],
            loss_reduction="sum",
            origin_params=[origin],
        )
        engine.attach(torch.optim.SGD([p for _, p in named]))

    def run() -> Tensor:
        model.zero_grad()
        F.cross_entropy(model(problem.inputs), problem.targets, reduction="sum").backward()
        norms = [getattr(p, "norm_sample", None) for _, p in named]
        return torch.stack([norm for norm in norms if norm is not None]).norm(dim=0)

    return run


PEERS: dict[str, Peer] = {
    "loop": loop,
    "vmap": vmap,
    "vmap chunked": vmap_chunked,
    "expanded weights": expanded_weights,
    "opacus hooks": opacus_hooks,
    "opacus ghost": opacus_ghost,
    "backpack": backpack,
    "captum": captum,
    "fastdp": fastdp,
}
