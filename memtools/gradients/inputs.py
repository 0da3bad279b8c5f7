"""Norms of the loss gradient of every example with respect to its own input."""

import torch
from memtools_kernels import row_norms
from torch import Tensor, nn

from memtools.batch import LossFunction, check_batch, check_chunk_size, per_example_losses
from memtools.guard import leaf, plain, untouched

__all__ = ["differentiate", "input_gradient_norms"]


def input_gradient_norms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss_fn: LossFunction | None = None,
    p: float = 1,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Norm of the gradient of each example's loss with respect to its input.

    .. math:: g_i = \lVert \partial\, \ell(f_\theta(x_i), y_i) / \partial x_i \rVert_p

    the sensitivity at the *present* weights. It is not the loss sensitivity of Arpit et al.
    (2017), which goes through the training as well. One pass over the summed loss gives all
    examples, since they are independent. The model is used in the mode it is in, and left as it
    was. Extra memory: the activations of one chunk, and its input gradient.

    Args:
        model: Maps inputs to logits. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        p: 1, 2 or ``math.inf``.
        chunk_size: Examples a pass; ``None`` takes all at once.

    Returns:
        Norms of shape ``(n,)``, float32 (float64 for float64 inputs), in units of loss per unit of
        the input.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the batch is empty or integer, targets are out of range, logits are not
            finite, the loss is averaged, examples are coupled (by BatchNorm in train mode, for
            instance), or the forward pass draws random numbers.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> norms = memtools.input_gradient_norms(model, torch.randn(5, 3), torch.zeros(5).long())
        >>> norms.shape
        torch.Size([5])
    """
    check_batch(inputs, targets)
    size = check_chunk_size(chunk_size, len(inputs))
    norms = []
    with untouched(model) as forward:
        forward.refuse_coupling(inputs)
        targets = plain(targets)
        for chunk, chunk_targets in zip(inputs.split(size), targets.split(size), strict=True):
            x = leaf(chunk)
            losses = per_example_losses(loss_fn, forward(x), chunk_targets)
            forward.refuse_randomness()
            norms.append(row_norms(differentiate(losses.sum(), x), p))
    return torch.cat(norms)


def differentiate(value: Tensor, inputs: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Gradient of a number with respect to the inputs, and to nothing else.

    Raises:
        ValueError: If no differentiable path leads from the inputs to the value.
    """
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, inputs, retain_graph=keep_graph, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "model gives logits that do not depend on its inputs in a differentiable way; "
            "look for .detach(), torch.no_grad() or argmax in its forward pass"
        )
    return gradient
