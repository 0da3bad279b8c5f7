"""Scores of single examples from gradients with respect to their inputs."""

from collections.abc import Callable, Iterable

import torch
from memtools_kernels import row_norms
from torch import Tensor, nn

from memtools.batch import (
    LossFunction,
    check_batch,
    check_chunk_size,
    check_logits,
    check_targets,
    per_example_losses,
)
from memtools.gradients.passes import differentiate
from memtools.guard import Forward, leaf, untouched

__all__ = ["curvature", "variance_of_gradients"]


def variance_of_gradients(
    snapshots: Iterable[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    r"""How much the gradient of an example's own logit changes over a training (VoG).

    .. math:: VoG_i = \operatorname{mean}_p \sqrt{\tfrac{1}{K} \textstyle\sum_k (S_{kip} -
              \bar S_{ip})^2}, \qquad S_{kip} = \partial f_{\theta_k}(x_i)_{y_i} / \partial x_{ip}

    over K snapshots and the elements p of the input (Agarwal et al. 2022). To compare examples of
    different classes the authors then standardise it within each class, which is left to you.

    Extra memory: two float64 tensors of the size of the inputs, and the activations of a chunk.

    Args:
        snapshots: The model after some epochs, at least two: a list, or a generator that loads one
            after the other into the same module. Each is used in the mode it is in.
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: Class numbers of shape ``(n,)``.
        chunk_size: Examples a pass; ``None`` takes all at once.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 inputs), logits per unit of the input; higher
        is harder.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there are fewer than two snapshots, or as for
            :func:`memtools.input_gradient_norms`.

    Example:
        >>> import torch
        >>> snapshots = [torch.nn.Linear(4, 3) for _ in range(5)]
        >>> variance_of_gradients(snapshots, torch.randn(6, 4), torch.zeros(6).long()).shape
        torch.Size([6])
    """

    def own_logits(logits: Tensor, y: Tensor) -> Tensor:
        check_logits(logits, len(y))
        check_targets(y, logits.shape[1])
        return logits.gather(1, y.long()[:, None]).sum()

    check_batch(inputs, targets)
    size, count = check_chunk_size(chunk_size, len(inputs)), 0
    wide = torch.float32 if inputs.device.type == "mps" else torch.float64
    mean = torch.zeros(inputs.shape, dtype=wide, device=inputs.device)
    squares = torch.zeros_like(mean)
    for snapshot in snapshots:
        count += 1
        with untouched(snapshot) as forward:
            gradient = _gradients(forward, inputs, targets, own_logits, size).to(wide)
        # Welford's update, which does not cancel.
        before = gradient - mean
        mean += before / count
        squares += before * (gradient - mean)
    if count < 2:
        raise ValueError(f"snapshots must be at least 2 models, got {count}")
    return (squares / count).sqrt().flatten(1).mean(1).to(_result(inputs))


def curvature(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss_fn: LossFunction | None = None,
    step: float = 1e-3,
    probes: int = 10,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Curvature of each example's loss around its input.

    .. math:: \tfrac{1}{m} \textstyle\sum_{v} \Bigl\lVert \frac{\nabla_x \ell(x_i + h v) -
              \nabla_x \ell(x_i)}{h} \Bigr\rVert_2^2 \approx \lVert \nabla_x^2 \ell \rVert_F^2

    over m random vectors v of elements ±1 (Garg et al. 2024, who leave out the h). Networks of
    ReLUs have no curvature but at their kinks, of which a step h crosses more the longer it is.

    Args:
        model: Maps inputs to logits. Used in the mode it is in; examples must not influence each
            other.
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: Class numbers of shape ``(n,)``, or whatever ``loss_fn`` takes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy.
        step: h, in units of the input.
        probes: m.
        generator: Draws v, on the CPU; ``None`` is a new one with seed 0.
        chunk_size: Examples a pass; ``None`` takes all at once.

    Returns:
        Shape ``(n,)``, float32 (float64 for float64 inputs), squared loss per fourth power of the
        input; higher is harder.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``step`` or ``probes`` is not positive, or as for
            :func:`memtools.input_gradient_norms`.

    Example:
        >>> import torch
        >>> curvature(torch.nn.Linear(4, 3), torch.randn(6, 4), torch.zeros(6).long()).shape
        torch.Size([6])
    """

    def losses(logits: Tensor, y: Tensor) -> Tensor:
        return per_example_losses(loss_fn, logits, y).sum()

    check_batch(inputs, targets)
    size = check_chunk_size(chunk_size, len(inputs))
    if not 0 < step < float("inf"):
        raise ValueError(f"step must be positive, got {step}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    total = torch.zeros(len(inputs), dtype=_result(inputs), device=inputs.device)
    with untouched(model) as forward:
        here = _gradients(forward, inputs, targets, losses, size)
        for _ in range(probes):
            signs = 2 * torch.randint(2, inputs.shape, generator=generator) - 1
            moved = inputs.detach() + step * signs.to(inputs)
            change = _gradients(forward, moved, targets, losses, size) - here
            total += row_norms(change / step, 2, squared=True)
    return total / probes


def _gradients(
    forward: Forward,
    inputs: Tensor,
    targets: Tensor,
    value: Callable[[Tensor, Tensor], Tensor],
    size: int,
) -> Tensor:
    """Of a sum over the examples, with respect to their inputs."""
    forward.refuse_coupling(inputs)
    parts = []
    for x, y in zip(inputs.detach().split(size), targets.split(size), strict=True):
        x = leaf(x)
        total = value(forward(x), y)
        forward.refuse_randomness()
        parts.append(differentiate(total, x))
    return torch.cat(parts)


def _result(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32
