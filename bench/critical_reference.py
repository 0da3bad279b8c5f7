"""What is critical at least: the union of what three strong searches find, at any price."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.critical_models import CACHE, CLASSES
from memtools.files import replace_atomically

RESTARTS, STEPS, TARGETED_STEPS, STEPS_ACROSS = 8, 40, 30, 8
"""A step is an eighth of the radius; all start at random in the box, the first at the example."""
SETTINGS = (
    f"PGD on the cross-entropy and on the margin, {RESTARTS} restarts of {STEPS} steps each, and "
    f"targeted at each other class, {TARGETED_STEPS} steps; steps of r/{STEPS_ACROSS}; the first "
    "restart and the targeted ones start at the example, the others at random in the box"
)

Ascent = Callable[[Tensor, Tensor], Tensor]
"""Logits and predicted classes to what is to grow, summed over the examples."""


def union(model: nn.Module, inputs: Tensor, radius: float) -> Tensor:
    """Mask of the examples with another predicted class in the box, out of the cache or new."""
    digest = hashlib.sha256(f"{SETTINGS} {radius} {torch.__version__}".encode())
    for tensor in (inputs, *model.state_dict().values()):
        digest.update(tensor.numpy().tobytes())
    kept = CACHE / f"union-{digest.hexdigest()[:12]}.pt"
    if kept.exists():
        return torch.load(kept, weights_only=True)
    model.requires_grad_(False)
    found = _search(model, inputs, radius)
    model.requires_grad_(True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(kept) as path:
        torch.save(found, path)
    return found


def _search(model: nn.Module, inputs: Tensor, radius: float) -> Tensor:
    low, high = (inputs - radius).clamp(0, 1), (inputs + radius).clamp(0, 1)
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    found = torch.zeros(len(inputs), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    plans: list[tuple[Ascent, int, bool]] = [
        (_other_class(shift), TARGETED_STEPS, False) for shift in range(1, CLASSES)
    ]
    for restart in range(RESTARTS):
        plans += [(ascent, STEPS, restart > 0) for ascent in (_margin, _cross_entropy)]
    for ascent, steps, at_random in plans:
        at = found.logical_not().nonzero().flatten()
        points = inputs[at]
        if at_random:
            share = torch.rand(points.shape, generator=generator)
            points = low[at] + share * (high[at] - low[at])
        for step in range(steps + 1):
            if len(at) == 0:
                break
            x = points.requires_grad_()
            logits = model(x)
            flipped = logits.argmax(1) != predicted[at]
            found[at[_verified(model, points.detach(), predicted[at], flipped)]] = True
            if step < steps:
                (gradient,) = torch.autograd.grad(ascent(logits, predicted[at]), x)
                points = points.detach() + radius / STEPS_ACROSS * gradient.sign()
                points = points.clamp(low[at], high[at])
            stays = ~found[at]
            at, points = at[stays], points.detach()[stays]
    return found


@torch.no_grad()
def _verified(model: nn.Module, points: Tensor, predicted: Tensor, flipped: Tensor) -> Tensor:
    """Which flips a forward pass of them alone has as well."""
    where = flipped.nonzero().flatten()
    return where[model(points[where]).argmax(1) != predicted[where]] if len(where) else where


def _cross_entropy(logits: Tensor, predicted: Tensor) -> Tensor:
    return F.cross_entropy(logits, predicted, reduction="sum")


def _margin(logits: Tensor, predicted: Tensor) -> Tensor:
    own = logits.gather(1, predicted[:, None])
    others = logits.scatter(1, predicted[:, None], float("-inf"))
    return (others.amax(1, keepdim=True) - own).sum()


def _other_class(shift: int) -> Ascent:
    """Towards the predicted class plus ``shift``, around the circle of classes."""

    def ascent(logits: Tensor, predicted: Tensor) -> Tensor:
        target = (predicted + shift) % CLASSES
        return (logits.gather(1, target[:, None]) - logits.gather(1, predicted[:, None])).sum()

    return ascent
