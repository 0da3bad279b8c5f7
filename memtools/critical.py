"""Critical samples: examples with another predicted class inside a small box around them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtools.batch import check_batch, check_logits
from memtools.gradients.passes import differentiate
from memtools.guard import Forward, leaf, untouched

__all__ = ["CriticalSearch", "critical_sample_ratio", "find_critical"]

STEP_OVER_RADIUS = 0.25 / 0.3
NOISE_OVER_RADIUS = 0.2 / 0.3
NEVER = -1


@dataclass(frozen=True)
class CriticalSearch:
    """What a search for critical samples found. It is a lower bound: a search can miss a flip.

    Attributes:
        is_critical: Whether a point of another predicted class was found, ``(n,)`` bool.
        points: That point for a critical example, the example itself for the others,
            ``(n, ...)``.
        first_step: Number of the step that found it, from 1; -1 where none did, ``(n,)`` int64.
        evaluations: Forward passes of single examples that the search took; all but those of the
            last step had a backward pass as well.
        max_steps: Steps that were allowed.
    """

    is_critical: Tensor
    points: Tensor
    first_step: Tensor
    evaluations: int
    max_steps: int

    @property
    def ratio(self) -> Tensor:
        """Critical sample ratio, critical / all: a float32 scalar."""
        return self.is_critical.float().mean()

    def ratio_by_step(self) -> Tensor:
        """CSR(k), the ratio found within ``k`` steps, for ``k = 0 .. max_steps``: float32."""
        found = torch.bincount(self.first_step[self.is_critical], minlength=self.max_steps + 1)
        return found.cumsum(0) / len(self.is_critical)


def find_critical(
    model: nn.Module,
    inputs: Tensor,
    *,
    radius: float | Tensor,
    step_size: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    max_steps: int = 100,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    method: str = "lass",
    gradient_at: str = "moving",
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> CriticalSearch:
    r"""Search a box around each example for a point of another predicted class (LASS).

    Langevin adversarial sample search, algorithm 1 of Arpit et al. (2017): from
    :math:`\tilde x = x`, repeat

    .. math:: \tilde x \leftarrow \operatorname{clip}\bigl(\tilde x
              + \alpha \operatorname{sign} \nabla_{\tilde x} \ell(f(\tilde x), k)
              + \beta \eta,\; x - r,\; x + r\bigr), \qquad \eta \sim N(0, 1)

    until ``argmax f`` is no longer ``k``, the class predicted at ``x`` (not the true label). The
    model is in eval mode for the search. An example leaves at its first flip. The noise is drawn
    for all examples at each step, so that results do not depend on ``batch_size`` but for
    rounding. Extra memory: two copies of the inputs and the activations of one batch.

    Args:
        model: Maps inputs to logits of shape ``(n, C)``.
        inputs: Batch of shape ``(n, ...)``, floating point.
        radius: Half-width r of the box **in the units of the inputs**: the paper's 0.3 is on a
            scale of 0 to 255, so for inputs in [0, 1] it is ``0.3 / 255``. A tensor that
            broadcasts against one example, such as ``(C, 1, 1)``, gives each channel its own.
        step_size: alpha; ``None`` keeps the paper's ratio, ``radius * 0.25 / 0.3``.
        noise: beta; ``None`` keeps the paper's ratio, ``radius * 0.2 / 0.3``; 0 for none.
        max_steps: Steps at most. The paper gives no number.
        bounds: Smallest and largest allowed input, for instance ``(0, 1)``; ``None`` does not
            clip beyond the box, as in the paper.
        method: Only ``"lass"`` for now.
        gradient_at: ``"moving"``, the gradient at the moving point, as in the authors' code, or
            ``"start"``, at the example, as the paper prints it.
        generator: Source of the noise; ``None`` is a new one with seed 0. The global random state
            is neither read nor changed.
        batch_size: Examples a pass; ``None`` takes all at once.

    Returns:
        A :class:`CriticalSearch`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, the batch is empty or integer, logits are not
            finite, examples are coupled, or the model draws random numbers in eval mode.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), model.bias.data.zero_()
        >>> inputs = torch.tensor([[0.05], [5.0]])
        >>> memtools.find_critical(model, inputs, radius=0.1).is_critical
        tensor([ True, False])
    """
    check_batch(inputs)
    box = _Box.around(inputs, radius, bounds)
    if method != "lass":
        raise ValueError(f'method must be "lass", got {method!r}; there is no other yet')
    if gradient_at not in ("moving", "start"):
        raise ValueError(
            f'gradient_at must be "moving" or "start", got {gradient_at!r}; leave it out for the '
            "authors' code"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}; the default is 100")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; None takes all at once")
    alpha, beta = box.radius * STEP_OVER_RADIUS, box.radius * NOISE_OVER_RADIUS
    if step_size is not None:
        alpha = _per_example("step_size", step_size, inputs)
    if noise is not None:
        beta = _per_example("noise", noise, inputs)
    if generator is None:
        generator = torch.Generator(inputs.device).manual_seed(0)

    with untouched(model, evaluating=True) as forward, torch.no_grad():
        return _lass(
            forward,
            inputs.detach(),
            box,
            alpha=alpha,
            beta=beta,
            max_steps=max_steps,
            gradient_at_start=gradient_at == "start",
            generator=generator,
            batch_size=batch_size or len(inputs),
        )


def critical_sample_ratio(
    model: nn.Module,
    inputs: Tensor,
    *,
    radius: float | Tensor,
    step_size: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    max_steps: int = 100,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    method: str = "lass",
    gradient_at: str = "moving",
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Share of the examples for which :func:`find_critical` finds another class in the box.

    A lower bound on the share of critical samples, Arpit et al. (2017), section 4.1. Arguments and
    errors are those of :func:`find_critical`; mind the units of ``radius``.

    Returns:
        A float32 scalar, 0 to 1.
    """
    return find_critical(
        model,
        inputs,
        radius=radius,
        step_size=step_size,
        noise=noise,
        max_steps=max_steps,
        bounds=bounds,
        method=method,
        gradient_at=gradient_at,
        generator=generator,
        batch_size=batch_size,
    ).ratio


@dataclass(frozen=True)
class _Box:
    radius: Tensor
    low: Tensor | None
    high: Tensor | None

    @classmethod
    def around(
        cls,
        inputs: Tensor,
        radius: float | Tensor,
        bounds: tuple[float | Tensor, float | Tensor] | None,
    ) -> "_Box":
        radius = _per_example("radius", radius, inputs)
        if bounds is None:
            return cls(radius, None, None)
        if len(bounds) != 2:
            raise ValueError(
                f"bounds must be the smallest and the largest input, got {len(bounds)} values; "
                "pass for instance (0, 1)"
            )
        low, high = (_broadcast("bounds", bound, inputs) for bound in bounds)
        if not bool((low <= inputs).all()) or not bool((inputs <= high).all()):
            raise ValueError(
                f"bounds must contain the inputs, got {bounds} for inputs from "
                f"{float(inputs.min()):g} to {float(inputs.max()):g}; use the inputs' own units"
            )
        return cls(radius, low, high)

    def clip(self, points: Tensor, centres: Tensor) -> Tensor:
        points = torch.clamp(points, centres - self.radius, centres + self.radius)
        return points if self.low is None else torch.clamp(points, self.low, self.high)


def _per_example(name: str, value: float | Tensor, inputs: Tensor) -> Tensor:
    value = _broadcast(name, value, inputs)
    if not bool((value >= 0).all()) or not bool(value.isfinite().all()):
        raise ValueError(
            f"{name} must be finite and not negative, got {value.tolist()}; "
            "it is a length in the units of the inputs"
        )
    return value


def _broadcast(name: str, value: float | Tensor, inputs: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    try:
        value.expand(inputs.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast against one example of shape {tuple(inputs.shape[1:])}, "
            f"got shape {tuple(value.shape)}; a value per channel has shape (C, 1, 1)"
        ) from None
    return value


def _lass(
    forward: Forward,
    inputs: Tensor,
    box: _Box,
    *,
    alpha: Tensor,
    beta: Tensor,
    max_steps: int,
    gradient_at_start: bool,
    generator: torch.Generator,
    batch_size: int,
) -> CriticalSearch:
    forward.refuse_coupling(inputs)
    predicted, signs = _look(forward, inputs, batch_size)
    points = inputs.clone()
    first_step = torch.full((len(inputs),), NEVER, device=inputs.device)
    active = torch.arange(len(inputs), device=inputs.device)
    evaluations = len(inputs)
    for step in range(1, max_steps + 1):
        eta = torch.randn(
            inputs.shape, generator=generator, dtype=inputs.dtype, device=generator.device
        ).to(inputs.device)
        moved = points[active] + alpha * signs + beta * eta[active]
        points[active] = box.clip(moved, inputs[active])
        wanted = not gradient_at_start and step < max_steps
        classes, new_signs = _look(forward, points[active], batch_size, signs=wanted)
        evaluations += len(active)
        stays = classes == predicted[active]
        first_step[active[~stays]] = step
        active = active[stays]
        signs = (new_signs if wanted else signs)[stays]
        if len(active) == 0:
            break
    forward.refuse_randomness()
    points[active] = inputs[active]
    return CriticalSearch(first_step != NEVER, points, first_step, evaluations, max_steps)


def _look(
    forward: Forward, inputs: Tensor, batch_size: int, *, signs: bool = True
) -> tuple[Tensor, Tensor]:
    """Predicted classes, and if wanted the sign of the gradient of the cross-entropy against them.

    An example that is still searched has the class it began with, so that one forward pass serves
    both the check for a flip and the next step.
    """
    classes, directions = [], []
    for chunk in inputs.split(batch_size):
        with torch.set_grad_enabled(signs):
            x = leaf(chunk)
            logits = forward(x)
            check_logits(logits, len(chunk))
            classes.append(logits.argmax(1))
            if signs:
                loss = F.cross_entropy(logits, classes[-1], reduction="sum")
                directions.append(differentiate(loss, x).sign())
    return torch.cat(classes), torch.cat(directions) if signs else inputs.new_empty(0)
