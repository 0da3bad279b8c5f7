"""Norms of the loss gradient of every example with respect to the weights."""

from collections.abc import Iterator

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
from memtools.guard import Forward, untouched

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
            finite, the loss is averaged, examples are coupled by BatchNorm in train mode, the
            forward pass draws random numbers, or no weight requires a gradient.

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
        norms = []
        for chunk, chunk_targets in zip(inputs.split(size), targets.split(size), strict=True):
            with torch.no_grad():
                per_example_losses(loss_fn, forward(chunk), chunk_targets)
            forward.refuse_randomness()
            squares = _squared_norms(forward, chunk.detach(), chunk_targets, loss_fn)
            norms.append(squares.sqrt())
    return torch.cat(norms)


def _squared_norms(
    forward: Forward, inputs: Tensor, targets: Tensor, loss_fn: LossFunction | None
) -> Tensor:
    frozen = {k: p for k, p in forward.parameters.items() if k not in forward.trainable}
    trainable = {k: forward.parameters[k] for k in forward.trainable}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = forward.with_parameters(weights | frozen, x.unsqueeze(0))
        return unchecked_losses(loss_fn, logits, y.unsqueeze(0)).squeeze(0)

    gradient = grad(loss)
    try:
        gradients = vmap(gradient, in_dims=(None, 0, 0))(trainable, inputs, targets)
    except (RuntimeError, ValueError):
        # What vmap cannot vectorise, such as data-dependent control flow, is still exact one
        # example at a time. An error of the user's own comes up again there.
        singles = (gradient(trainable, x, y) for x, y in zip(inputs, targets, strict=True))
        return torch.stack([sum(_squares(g, keep=0)) for g in singles])
    return sum(_squares(gradients, keep=1))


def _squares(gradients: dict[str, Tensor], keep: int) -> Iterator[Tensor]:
    """Sums of squares over all but the first ``keep`` dimensions, in float32 or wider."""
    for g in gradients.values():
        wide = g if g.dtype == torch.float64 else g.float()
        yield wide.square().flatten(keep).sum(-1) if g.ndim > keep else wide.square()


def _default_chunk_size(forward: Forward) -> int:
    weights = (forward.parameters[name] for name in forward.trainable)
    return max(1, CHUNK_BYTES // sum(w.numel() * w.element_size() for w in weights))
