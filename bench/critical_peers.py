"""How other tools search the box, each as its users would, and the loop of public code.

A peer prepares what it needs once and returns what one full search is: a call that gives a point
in the box for each example. Labels are the predicted classes. The weights of the model that it gets
are frozen, which spares the tools that call ``backward`` the gradients of the weights.
"""

# Where a peer is not installed, a type checker cannot find it either.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import NamedTuple

import torch
from memtools_kernels import box_noise
from torch import Tensor, nn
from torch.nn import functional as F

from memtools import CriticalSearch
from memtools.critical.streams import seed_of, stream_keys

STEPS = 50
STEPS_ACROSS = 8
"""Steps of the tools are an eighth of the radius, at which they find the most, or nearly so."""
STEP_OVER_RADIUS = 0.25 / 0.3
NOISE_OVER_RADIUS = 0.2 / 0.3
PACKAGES = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "ART": "adversarial-robustness-toolbox",
}


class Cell(NamedTuple):
    """A search to be made: examples of pixels in [0, 1], and the half-width of their boxes."""

    model: nn.Module
    inputs: Tensor
    radius: float


Search = Callable[[], Tensor | CriticalSearch]
"""A point for each example; the example itself, or any other point, where nothing was found."""
Peer = Callable[[Cell], Search]


@torch.no_grad()
def predicted(cell: Cell) -> Tensor:
    return cell.model(cell.inputs).argmax(1)


def _noise_of_steps(inputs: Tensor) -> list[Tensor]:
    """The noise that ``find_critical`` draws where no generator is given."""
    keys = stream_keys(inputs, seed_of(None))
    each = (torch.full_like(keys, step) for step in range(STEPS))
    return [box_noise(keys, step, inputs[0].numel()).reshape(inputs.shape) for step in each]


def loop(cell: Cell, share: Tensor | None = None) -> Search:
    """LASS for one example at a time, as in public code, with the noise of ``find_critical``.

    A step is a forward pass, ``loss.backward()`` on the model as it was trained, whose weights take
    gradients as well, and a forward pass to see whether the class is another. The noise is drawn
    beforehand.

    Args:
        cell: What is searched.
        share: Indices of the examples that are searched, alone; ``None`` is all.
    """
    search = frozen_loop(cell, share, _by_backward)

    def unfrozen() -> Tensor:
        cell.model.requires_grad_(True)
        try:
            return search()
        finally:
            cell.model.requires_grad_(False).zero_grad()

    return unfrozen


def _by_backward(loss: Tensor, x: Tensor) -> Tensor:
    loss.backward()
    assert x.grad is not None
    return x.grad


def _by_grad(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def frozen_loop(
    cell: Cell,
    share: Tensor | None = None,
    differentiate: Callable[[Tensor, Tensor], Tensor] = _by_grad,
) -> Callable[[], Tensor]:
    """As :func:`loop`, with gradients of the input alone: as fast as a loop can be."""
    model, noise = cell.model, _noise_of_steps(cell.inputs)
    alpha, beta = cell.radius * STEP_OVER_RADIUS, cell.radius * NOISE_OVER_RADIUS
    examples = range(len(cell.inputs)) if share is None else share.tolist()

    def one(i: int) -> Tensor:
        start = cell.inputs[i : i + 1]
        low, high = (start - cell.radius).clamp(0, 1), (start + cell.radius).clamp(0, 1)
        with torch.no_grad():
            label = model(start).argmax(1)
        point = start
        for eta in noise:
            x = point.clone().requires_grad_()
            gradient = differentiate(F.cross_entropy(model(x), label), x)
            point = point + alpha * gradient.sign() + beta * eta[i]
            point = torch.clamp(point, low, high)
            with torch.no_grad():
                if model(point).argmax(1) != label:
                    break
        return point

    return lambda: torch.cat([one(i) for i in examples])


def foolbox(cell: Cell) -> Search:
    """Its ``LinfPGD``."""
    from foolbox.attacks import LinfPGD
    from foolbox.models.pytorch import PyTorchModel

    model, labels = PyTorchModel(cell.model, bounds=(0, 1)), predicted(cell)
    attack = LinfPGD(steps=STEPS, rel_stepsize=1 / STEPS_ACROSS)
    return lambda: attack(model, cell.inputs, labels, epsilons=cell.radius)[1]


def torchattacks(cell: Cell) -> Search:
    """Its ``PGD``."""
    import torchattacks as ta

    attack = ta.PGD(cell.model, eps=cell.radius, alpha=cell.radius / STEPS_ACROSS, steps=STEPS)
    labels = predicted(cell)
    return lambda: attack(cell.inputs, labels)


def art(cell: Cell) -> Search:
    """Its ``ProjectedGradientDescent``, in batches of 1,000 in place of 32."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        cell.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(cell.inputs.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=cell.radius,
        eps_step=cell.radius / STEPS_ACROSS,
        max_iter=STEPS,
        batch_size=1000,
        verbose=False,
    )
    inputs, labels = cell.inputs.numpy(), predicted(cell).numpy()
    return lambda: torch.from_numpy(attack.generate(inputs, labels))


LOOPS: dict[str, Callable[..., Search]] = {"loop": loop, "frozen loop": frozen_loop}
PEERS: dict[str, Peer] = {"foolbox": foolbox, "torchattacks": torchattacks, "ART": art}
