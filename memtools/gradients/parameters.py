"""Norms of the loss gradient of every example with respect to the weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from memtools.batch import (
    LossFunction,
    check_batch,
    check_chunk_size,
    per_example_losses,
    unchecked_losses,
)
from memtools.guard import Forward, leaf, plain, untouched

__all__ = ["parameter_gradient_norms"]

CHUNK_BYTES = 256 * 2**20
"""Bound on the gradients that are held at once when ``chunk_size`` is None."""


def parameter_gradient_norms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss_fn: LossFunction | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Euclidean norm of the gradient of each example's loss with respect to the weights.

    .. math:: g_i = \lVert \nabla_\theta\, \ell(f_\theta(x_i), y_i) \rVert_2

    the GraNd score of Paul et al. (2021), "Deep Learning on a Data Diet", over all weights that
    require a gradient; frozen ones do not count, tied ones count once with their summed gradient.
    Gradients are taken by ``torch.func``, vectorised over a chunk of examples; a model that this
    cannot vectorise goes one example at a time. Extra memory: ``chunk_size`` times the size of
    the weights, and the activations of a chunk.

    Args:
        model: Maps inputs to logits. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        chunk_size: Examples whose gradients are held at once; ``None`` keeps them under 256 MiB.

    Returns:
        Norms of shape ``(n,)``, float32 (float64 for a float64 model).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the batch is empty or integer, targets are out of range, logits are not
            finite, the loss is averaged, examples are coupled (by BatchNorm in train mode, for
            instance), the forward pass draws random numbers, or no weight gets a gradient.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> targets = torch.ones(5).long()
        >>> norms = memtools.parameter_gradient_norms(model, torch.randn(5, 3), targets)
        >>> norms.shape
        torch.Size([5])
    """
    check_batch(inputs, targets)
    with untouched(model) as forward:
        if not forward.trainable:
            raise ValueError(
                "model has no weight with requires_grad=True, so that there is no gradient to take"
            )
        size = check_chunk_size(chunk_size, _default_chunk_size(forward))
        forward.refuse_coupling(inputs)
        inputs, targets = plain(inputs), plain(targets)
        leaves = {name: leaf(forward.parameters[name]) for name in forward.trainable}
        norms = []
        for chunk, chunk_targets in zip(inputs.split(size), targets.split(size), strict=True):
            logits = forward.with_parameters(forward.parameters | leaves, chunk)
            losses = per_example_losses(loss_fn, logits, chunk_targets)
            forward.refuse_randomness()
            if not losses.requires_grad:
                raise ValueError(
                    "model gives logits that do not depend on its weights in a differentiable "
                    "way; look for .detach(), torch.no_grad() or argmax in its forward pass"
                )
            del logits, losses  # their activations
            norms.append(_squared_norms(forward, leaves, chunk, chunk_targets, loss_fn).sqrt())
    return torch.cat(norms)


def _squared_norms(
    forward: Forward,
    leaves: dict[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFunction | None,
) -> Tensor:
    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = forward.with_parameters(forward.parameters | weights, x.unsqueeze(0))
        return unchecked_losses(loss_fn, logits, y.unsqueeze(0)).squeeze(0)

    weights = {name: forward.parameters[name] for name in leaves}
    try:
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
    except (RuntimeError, ValueError):
        # What torch.func cannot vectorise or does not take at all, such as data-dependent control
        # flow, backward hooks, checkpoints and custom functions, is still exact one example at a
        # time by plain autograd. An error of the user's own comes up again there.
        return torch.stack(
            [
                _squared_norm(loss(leaves, x, y), leaves)
                for x, y in zip(inputs, targets, strict=True)
            ]
        )
    # A tensor of the model's that is no parameter may have left a graph.
    return _sum_of_squares(gradients.values(), keep=1).detach()


def _squared_norm(loss: Tensor, leaves: dict[str, Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return _sum_of_squares((g for g in gradients if g is not None), keep=0)


def _sum_of_squares(gradients: Iterable[Tensor], keep: int) -> Tensor:
    """Over all but the first ``keep`` dimensions and all gradients, in float32 or wider."""
    total = torch.zeros(())
    for g in gradients:
        wide = g if g.dtype == torch.float64 else g.float()
        squares = wide.square()
        squares = squares.flatten(keep).sum(-1) if g.ndim > keep else squares
        total = squares + total.to(g.device)
    return total


def _default_chunk_size(forward: Forward) -> int:
    weights = (forward.parameters[name] for name in forward.trainable)
    return max(1, CHUNK_BYTES // sum(w.numel() * w.element_size() for w in weights))
