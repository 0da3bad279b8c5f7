"""Norms of the loss gradient of every example with respect to its own input."""

from torch import Tensor, nn

from memtools.batch import LossFunction
from memtools.gradients.measure import measure
from memtools.gradients.passes import Request

__all__ = ["input_gradient_norms"]


def input_gradient_norms(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss_fn: LossFunction | None = None,
    p: float = 1,
    chunk_size: int | None = None,
    embedding: str | nn.Module | None = None,
    check: bool = False,
    verify: int = 0,
    allow_random: bool = False,
) -> Tensor:
    r"""Norm of the gradient of each example's loss with respect to its input.

    .. math:: g_i = \lVert \partial\, \ell(f_\theta(x_i), y_i) / \partial x_i \rVert_p

    the sensitivity at the *present* weights. It is not the loss sensitivity of Arpit et al.
    (2017), which goes through the training as well. One pass over the summed loss gives all
    examples, since they are independent, and no gradient of a weight is formed. The model is used
    in the mode it is in, and left as it was.

    Integer inputs have no gradient. For a model of tokens, taken is the gradient with respect to
    what its embedding makes of them: of shape ``(n, T, d)`` for tokens ``(n, T)``.

    Extra memory: the activations of one chunk, and its input gradient.

    Args:
        model: Maps inputs to logits. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point, or integer for a model that embeds it.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        p: 1, 2 or ``math.inf``.
        chunk_size: Examples a pass; ``None`` takes all at once, as a training step does.
        embedding: For integer inputs, the embedding that looks them up, or its name; ``None``
            finds it if there is only one, and warns which it is.
        check: Whether to compare the logits of every example with those in other company before,
            which finds any coupling. Without it, two examples are differentiated against each
            other, and BatchNorm is known by its type.
        verify: So many examples, drawn at random, are redone alone; a difference raises.
        allow_random: Whether the model may draw random numbers, for instance by dropout in train
            mode. The result is then for one draw, from the global random state.

    Returns:
        Norms of shape ``(n,)``, float32 (float64 for float64 inputs), in units of loss per unit of
        the input.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the batch is empty, integers are not looked up in one embedding, targets are
            out of range, logits are not finite, the loss is averaged, examples are coupled (by
            BatchNorm in train mode, for instance), or the forward pass draws random numbers.
        RuntimeError: If ``verify`` finds a difference.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> norms = memtools.input_gradient_norms(model, torch.randn(5, 3), torch.zeros(5).long())
        >>> norms.shape
        torch.Size([5])
    """
    request = Request(loss_fn, p=p, allow_random=allow_random, embedding=embedding)
    norms = measure(
        model, inputs, targets, request, chunk_size=chunk_size, check=check, verify=verify
    ).inputs
    assert norms is not None
    return norms
