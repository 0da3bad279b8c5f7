"""Norms of the loss gradient of every example with respect to the weights."""

from torch import Tensor, nn

from memtools.batch import LossFunction
from memtools.gradients.measure import measure
from memtools.gradients.passes import Request

__all__ = ["parameter_gradient_norms"]


def parameter_gradient_norms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss_fn: LossFunction | None = None,
    chunk_size: int | None = None,
    check: bool = False,
    verify: int = 0,
    allow_random: bool = False,
) -> Tensor:
    r"""Norm of the gradient of each example's loss with respect to the weights.

    .. math:: g_i = \lVert \nabla_\theta\, \ell(f_\theta(x_i), y_i) \rVert_2

    the GraNd score of Paul et al. (2021), "Deep Learning on a Data Diet", over all weights that
    require a gradient; frozen ones do not count, tied ones count once with their summed gradient.

    One forward and one backward pass, which forms no gradient of a weight: the norm of what a
    linear layer, a convolution, an embedding, a normalisation or a sum adds is computed from its
    input and the gradient of its output. A weight that is used in another way (in a recurrent
    layer, by a custom function) goes, alone, through ``torch.func``, or an example at a time where
    that does not work. The first batch of a shape costs a forward pass of two examples more, to
    see where the examples are inside the model.

    Extra memory over a plain training step: at most about 24 MiB, and for weights without a closed
    form ``max(32 MiB, size of these weights)``; less the weight gradients, which are not formed.

    Args:
        model: Maps inputs to logits. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point, or integer for a model that embeds it.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        chunk_size: Examples a pass; ``None`` takes all at once, as a training step does. The
            result does not depend on it, but for rounding.
        check: Whether to compare the logits of every example with those in other company before,
            which finds any coupling. Without it, two examples are compared, and BatchNorm is known
            by its type.
        verify: So many examples, drawn at random, are redone alone, by autograd and nothing else;
            a difference of more than half of the digits raises.
        allow_random: Whether the model may draw random numbers, for instance by dropout in train
            mode. The result is then for one draw, from the global random state.

    Returns:
        Norms of shape ``(n,)``, float32 (float64 for a float64 model); NaN or
            infinite where squares overflow: inputs of a layer beyond 1.8e19 in float32.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the batch is empty, targets are out of range, logits are not finite, the
            loss is averaged, examples are coupled (by BatchNorm in train mode, for instance), the
            forward pass draws random numbers, or no weight gets a gradient.
        RuntimeError: If ``verify`` finds a difference.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> targets = torch.ones(5).long()
        >>> norms = memtools.parameter_gradient_norms(model, torch.randn(5, 3), targets)
        >>> norms.shape
        torch.Size([5])
    """
    request = Request(loss_fn, parameters=True, allow_random=allow_random)
    norms = measure(
        model, inputs, targets, request, chunk_size=chunk_size, check=check, verify=verify
    ).parameters
    assert norms is not None
    return norms
