"""Small problems whose answers plain PyTorch gives as well, slowly."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import memtools_kernels as kernels
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtools.critical import find_critical
from memtools.gradients import gradient_norms, watch
from memtools.sensitivity import TrainingTape, loss_sensitivity
from memtools.testing import assert_untouched

__all__ = ["CHECKS"]

TOLERANCE = 1e-5
"""What is left of float32 after sums of a few hundred terms, with room."""


def _row_norms(device: torch.device) -> str:
    x = torch.randn(33, 257, device=device)
    for p in (1, 2, math.inf):
        _agree(kernels.row_norms(x, p), x.cpu().double().norm(p, dim=1))
    return _same(33)


def _outer_norms(device: torch.device) -> str:
    rows, columns = torch.randn(9, 21, 33, device=device), torch.randn(9, 21, 17, device=device)
    gradients = rows.cpu().double().mT @ columns.cpu().double()
    _agree(kernels.outer_norms(rows, columns), gradients.square().sum((1, 2)))
    return _same(9)


def _patch_norms(device: torch.device) -> str:
    images, vectors = torch.randn(5, 3, 11, 11), torch.randn(5, 4, 11, 11)
    patches = F.unfold(images.double(), 3, padding=1)
    gradients = vectors.double().flatten(2) @ patches.mT
    ours = kernels.patch_norms(
        images.to(device), vectors.to(device), kernel_size=(3, 3), padding=(1, 1)
    )
    _agree(ours, gradients.square().sum((1, 2)))
    return _same(5)


def _lookups(device: torch.device) -> str:
    indices, gradients = torch.randint(13, (7, 20)), torch.randn(7, 20, 9)
    rows, columns = torch.randn(7, 6, 13), torch.randn(7, 6, 9)
    table = F.one_hot(indices, 13).double().mT @ gradients.double()
    head = rows.double().mT @ columns.double()
    places = [tensor.to(device) for tensor in (indices, gradients, rows, columns)]
    _agree(kernels.lookup_norms(*places[:2]), table.square().sum((1, 2)))
    # Products of both signs: what rounding may cost is in proportion to their sizes.
    _agree(kernels.lookup_dots(*places), (table * head).sum((1, 2)), (table * head).abs().sum())
    return _same(7)


def _logit_scores(device: torch.device) -> str:
    logits, targets = torch.randn(50, 11), torch.randint(11, (50,))
    wide, each = logits.double(), torch.arange(50)
    p = wide.softmax(1)
    others = wide.clone()
    others[each, targets] = -math.inf
    ours = kernels.logit_scores(logits.to(device), targets.to(device))
    _agree(ours.loss, F.cross_entropy(wide, targets, reduction="none"))
    _agree(ours.el2n, (p - F.one_hot(targets, 11)).norm(dim=1))
    _agree(ours.margin, wide[each, targets] - others.amax(1))
    _agree(ours.entropy, torch.special.entr(p).sum(1))
    return _same(50)


def _box_step(device: torch.device) -> str:
    x, gradient = torch.randn(6, 40), torch.randn(6, 40)
    low, high, unit, sizes = x - 0.1, x + 0.1, torch.full((40,), 0.07), torch.linspace(0, 2, 6)
    want = torch.clamp(x + sizes[:, None] * unit * gradient.sign(), low, high)
    points = x.to(device)
    given = [tensor.to(device) for tensor in (gradient, low, high, unit, sizes)]
    kernels.box_step(points, *given[:3], unit=given[3], sizes=given[4])
    _agree(points, want.double())
    return _same(6)


def _gini(device: torch.device) -> str:
    values = torch.rand(4, 301)
    pairs = (values.double()[:, :, None] - values.double()[:, None]).abs().mean((1, 2))
    _agree(kernels.gini(values.to(device)), pairs / (2 * values.double().mean(1)))
    return "as the mean difference of all pairs of 301 values gives them"


def _gradient_norms(device: torch.device) -> str:
    model = _network().to(device)
    x, y = torch.randn(12, 8, device=device), torch.randint(3, (12,), device=device)
    inputs, parameters = [], []
    for i in range(12):
        one = x[i : i + 1].clone().requires_grad_()
        loss = F.cross_entropy(model(one), y[i : i + 1])
        gradients = torch.autograd.grad(loss, [one, *model.parameters()])
        inputs.append(gradients[0].abs().sum())
        parameters.append(torch.cat([g.flatten() for g in gradients[1:]]).norm())
    with assert_untouched(model, inputs=x):
        ours = gradient_norms(model, x, y)
    _agree(ours.inputs, torch.stack(inputs).cpu().double())
    _agree(ours.parameters, torch.stack(parameters).cpu().double())
    return "as a backward pass for each of 12 examples gives them; the model is as it was"


def _watch(device: torch.device) -> str:
    x, y = torch.randn(20, 8, device=device), torch.randint(3, (20,), device=device)
    weights = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = _network().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            with watch(model) if watched else nullcontext() as seen:
                F.cross_entropy(model(x), y).backward()
            if seen is not None and len(seen.parameter_gradient_norms()) != 20:
                raise ArithmeticError("watch saw other examples than the 20 of the batch")
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    if not torch.equal(*weights):
        raise ArithmeticError("five updates under watch end in other weights than without")
    return "five updates under it end in the same weights, bit for bit"


def _loss_sensitivity(device: torch.device) -> str:
    x, y = torch.randn(6, 4, device=device), torch.tensor([0, 1, 2, 0, 1, 2], device=device)
    model = nn.Linear(4, 3).to(device)
    batches = [torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), torch.tensor([0, 2, 4])]

    data = x.clone().requires_grad_()
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    for batch in batches:
        loss = F.cross_entropy(F.linear(data[batch], *weights), y[batch])
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        weights = [w - 0.5 * g for w, g in zip(weights, gradients, strict=True)]
    F.cross_entropy(F.linear(data, *weights), y).backward()
    assert data.grad is not None

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tape = TrainingTape(model, optimizer)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        tape.record(batch)
        optimizer.step()
    ours = loss_sensitivity(tape, (x, y))[-1]
    _agree(ours, data.grad.abs().sum(1).cpu().double())
    return "as autograd through one graph of three updates gives it"


def _find_critical(device: torch.device) -> str:
    model = nn.Linear(7, 3).to(device)
    x = torch.randn(60, 7, device=device)
    # A linear boundary is at the gap of the logits over the L1 norm of the difference of weights.
    logits, w = model(x).detach().cpu().double(), model.weight.detach().cpu().double()
    top = logits.argmax(1)
    gaps = logits.gather(1, top[:, None]) - logits
    reach = (w[top][:, None] - w).abs().sum(2)
    distance = (gaps / reach).masked_fill(F.one_hot(top, 3).bool(), math.inf).amin(1)
    radius = float(distance.sort().values[29:31].mean())
    found = find_critical(model, x, radius=radius, method="auto").is_critical.cpu()
    if not torch.equal(found, distance < radius):
        wrong = int((found != (distance < radius)).sum())
        raise ArithmeticError(f"{wrong} of 60 examples of a linear model are judged wrongly")
    return "all 60 examples of a linear model as geometry says, half of them critical"


CHECKS: dict[str, Callable[[torch.device], str]] = {
    "row_norms": _row_norms,
    "outer_norms": _outer_norms,
    "patch_norms": _patch_norms,
    "lookup_norms, lookup_dots": _lookups,
    "logit_scores": _logit_scores,
    "box_step": _box_step,
    "gini": _gini,
    "gradient_norms": _gradient_norms,
    "watch": _watch,
    "loss_sensitivity": _loss_sensitivity,
    "find_critical": _find_critical,
}
"""By name; each returns what it saw, and raises where that is wrong."""


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def _agree(ours: Tensor, exact: Tensor, scale: Tensor | None = None) -> None:
    scale = exact.abs().max() if scale is None else scale
    off = (ours.cpu().double() - exact).abs().max() / scale
    if not off <= TOLERANCE:
        raise ArithmeticError(
            f"off by {float(off):.1e} of the largest value, expected at most {TOLERANCE:.0e}"
        )


def _same(count: int) -> str:
    return f"{count} examples as in float64, within {TOLERANCE:.0e} of the largest value"
