"""Both kinds of gradient norms of every example, from the same pass."""

from typing import NamedTuple

from torch import Tensor, nn

from memtools.batch import LossFunction
from memtools.gradients.measure import measure
from memtools.gradients.passes import Request

__all__ = ["GradientNorms", "gradient_norms"]


class GradientNorms(NamedTuple):
    """Norms of the gradients of n examples.

    Attributes:
        inputs: With respect to its own input, shape ``(n,)``.
        parameters: With respect to the weights, shape ``(n,)``.
    """

    inputs: Tensor
    parameters: Tensor


def gradient_norms(
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
) -> GradientNorms:
    """Input and parameter gradient norms of each example, for the price of one backward pass.

    The same numbers as :func:`memtools.input_gradient_norms` and
    :func:`memtools.parameter_gradient_norms` give one after the other, which says what the
    arguments are, what is raised, and how much memory is needed.

    Args:
        model: Maps inputs to logits. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point, or integer for a model that embeds it.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        p: Order of the norms of the input gradients: 1, 2 or ``math.inf``.
        chunk_size: Examples a pass; ``None`` takes all at once.
        embedding: For integer inputs, the embedding that looks them up, or its name.
        check: Whether to compare the logits of every example with those in other company before.
        verify: So many examples, drawn at random, are redone alone.
        allow_random: Whether the model may draw random numbers.

    Returns:
        Both vectors of norms, shape ``(n,)``, float32 or wider.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: As the two functions do.
        RuntimeError: If ``verify`` finds a difference.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> norms = memtools.gradient_norms(model, torch.randn(5, 3), torch.zeros(5).long())
        >>> norms.inputs.shape, norms.parameters.shape
        (torch.Size([5]), torch.Size([5]))
    """
    request = Request(loss_fn, p, True, allow_random, embedding)
    norms = measure(
        model, inputs, targets, request, chunk_size=chunk_size, check=check, verify=verify
    )
    assert norms.inputs is not None
    assert norms.parameters is not None
    return GradientNorms(norms.inputs, norms.parameters)
