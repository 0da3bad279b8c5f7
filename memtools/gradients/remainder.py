"""Gradient norms of the weights without a closed form, by ``torch.func`` or one at a time."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from memtools_kernels import row_norms
from torch import Tensor
from torch.func import grad, vmap

from memtools.batch import LossFunction, unchecked_losses
from memtools.gradients.survey import names_of, survey
from memtools.guard import Forward, leaf, plain

__all__ = ["remaining_squares"]

CHUNK_BYTES = 32 * 2**20
"""Bound on the gradients that are held at once."""

Loss = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""``loss(weights, x, y)``: the loss of a single example under these weights, a number."""


def remaining_squares(
    forward: Forward,
    names: Iterable[str],
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFunction | None,
    *,
    one_by_one: bool = False,
) -> Tensor:
    """Squared norms of the gradients of single examples with respect to some of the weights.

    Args:
        forward: The model.
        names: The weights.
        inputs: Batch of shape ``(n, ...)``.
        targets: Their targets.
        loss_fn: Losses of the examples; ``None`` is the cross-entropy.
        one_by_one: Whether to use nothing but autograd, an example at a time.

    Returns:
        Shape ``(n,)``, float32 or wider.
    """

    def loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = forward.with_parameters(forward.parameters | dict(weights), x.unsqueeze(0))
        return unchecked_losses(loss_fn, logits, y.unsqueeze(0)).squeeze(0)

    def own_loss(_: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return unchecked_losses(loss_fn, forward.with_weights(x[None]), y[None]).squeeze(0)

    inputs = plain(inputs)
    weights = {name: leaf(forward.parameters[name]) for name in names}
    own = {name: forward.trainable[name] for name in weights}

    def each(inputs: Tensor, targets: Tensor) -> Tensor:
        squares = []
        for x, y in zip(inputs, targets, strict=True):
            value = loss(weights, x, y)
            if reaches_own(value):
                squares.append(_square(own_loss(own, x, y), own))
            else:
                squares.append(_square(value, weights))
        return torch.stack(squares)

    def reaches_own(value: Tensor) -> bool:
        """Whether the model holds a weight in a second place, where no other is put for it."""
        reached = [] if value.grad_fn is None else survey([value.grad_fn], []).unknown
        return bool(names_of(forward.trainable, reached))

    if one_by_one or reaches_own(loss(weights, inputs[0], targets[0])):
        return each(inputs, targets)
    size = max(1, CHUNK_BYTES // sum(w.numel() * w.element_size() for w in weights.values()))
    squares = []
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        try:
            squares.append(_together(loss, weights, x, y))
        except (RuntimeError, ValueError):
            # What torch.func cannot vectorise or does not take at all, such as data-dependent
            # control flow, backward hooks, checkpoints and custom functions, is still exact one
            # example at a time. An error of the user's own comes up again there.
            squares.append(each(x, y))
    return torch.cat(squares)


def _together(loss: Loss, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    detached = {name: weight.detach() for name, weight in weights.items()}
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(detached, inputs, targets)
    # A tensor of the model's that is no parameter may have left a graph.
    return _total(gradients.values()).detach()


def _square(value: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    dense = (g.coalesce().values() if g.is_sparse else g for g in gradients if g is not None)
    return _total([g[None] for g in dense]).squeeze(0)


def _total(gradients: Iterable[Tensor]) -> Tensor:
    """Squared norms of the gradients of all weights, which may be on several devices."""
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        by_device[gradient.device].append(real)
    total = torch.zeros(())
    for some in by_device.values():
        squares = row_norms(some, squared=True)
        total = squares + total.to(squares.device)
    return total
