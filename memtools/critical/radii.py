"""How near each example is to a boundary: its smallest critical radius, and its linear reach."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memtools.batch import check_batch
from memtools.critical.auto import passes_of, search_thoroughly, survey
from memtools.critical.box import Bounds, Box, sizes_of
from memtools.critical.session import Options, Session
from memtools.critical.streams import checked

__all__ = ["critical_radius", "linear_reach"]


def critical_radius(
    model: nn.Module,
    inputs: Tensor,
    radii: Sequence[float],
    *,
    unit: float | Tensor = 1.0,
    bounds: Bounds | None = None,
    effort: float = 1.0,
    embedding: str | nn.Module | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    time_limit: float | None = None,
    progress: bool = False,
) -> Tensor:
    r"""The smallest of some radii at which each example is found to be critical.

    .. math:: \min \{ r \in \text{radii} : \exists\, x', \lVert (x' - x) / u \rVert_\infty \le r,
              \arg\max f(x') \ne \arg\max f(x) \}

    Boxes nest: an example that is critical at a radius is so at every larger one. So the radii are
    searched in ascending order, each time those examples only that are left. An upper bound, like
    every search;
    ``(critical_radius(...) <= r).float().mean()`` is the critical sample ratio at r.

    A measure of how complex the function is around an example. It is no good detector of wrong
    labels: on a memorised set the loss does as well or better.

    Args:
        model: As for :func:`memtools.find_critical`.
        inputs: As there.
        radii: Half-widths of boxes, in units of ``unit``.
        unit: What a radius of 1 is in the units of the inputs, for instance
            ``memtools.pixel_radius(1, normalize)``.
        bounds: As there.
        effort: As there, for each radius.
        embedding: As there.
        generator: As there.
        batch_size: As there.
        time_limit: As there, for all radii together.
        progress: As there.

    Returns:
        float32 of shape ``(n,)``; infinite where no radius was found to be critical.

    Raises:
        TypeError: As for :func:`memtools.find_critical`.
        ValueError: As there, and if ``radii`` are not positive numbers.
    """
    check_batch(inputs, tokens=embedding is not None)
    try:
        ascending = sorted(float(radius) for radius in radii)
    except (TypeError, ValueError, RuntimeError):
        ascending = []  # which is refused
    if not ascending or not all(0 < radius < float("inf") for radius in ascending):
        raise ValueError(f"radii must be positive numbers, at least one, got {radii!r}")
    most_spent = passes_of(effort)
    if embedding is None:
        sizes_of("unit", unit, inputs)
    size = torch.as_tensor(unit).double()  # 0.1 in float32 is more than 0.1
    end = None if time_limit is None else time.monotonic() + time_limit
    smallest = torch.full((len(inputs),), float("inf"), device=inputs.device)
    left = torch.arange(len(inputs), device=inputs.device)
    for number, radius in enumerate(ascending):
        seconds = None if end is None else end - time.monotonic()
        if len(left) == 0 or (seconds is not None and seconds <= 0):
            break
        options = Options(
            radius * size, bounds, embedding, _again(generator), batch_size, seconds, progress,
            any_units=number > 0,  # the few that are left may be alike
        )  # fmt: skip
        with Session.over(model, inputs[left], options) as session:
            if number == 0:
                Box.around(session.searched.centres, ascending[-1] * size, bounds).check_units(
                    session.searched.centres
                )
            session.begin(most_tried=most_spent // 2, most_spent=most_spent)
            search_thoroughly(session)
            found = session.result().is_critical
        smallest[left[found]] = radius
        left = left[~found]
    return smallest


def _again(generator: torch.Generator | None) -> torch.Generator | None:
    return None if generator is None else checked(generator).clone_state()


def linear_reach(
    model: nn.Module,
    inputs: Tensor,
    *,
    radius: float | Tensor,
    bounds: Bounds | None = None,
    embedding: str | nn.Module | None = None,
    batch_size: int | None = None,
) -> Tensor:
    r"""How far into another class the box of each example reaches, if the model were linear.

    .. math:: s = \max_c \frac{1}{f_k(x) - f_c(x)}
              \sum_i \Bigl\lvert \frac{\partial (f_c - f_k)}{\partial x_i} \Bigr\rvert \rho_i

    over the five classes c that are nearest to the predicted class k by their logits, with the
    room :math:`\rho_i` from the example to the wall of the box in the direction of the slope. For a
    linear model the example is critical if s > 1. A continuous score of how near a boundary is, by
    one forward and five backward passes; it is the score by which ``method="auto"`` of
    :func:`memtools.find_critical` leaves examples out.

    Args:
        model: As for :func:`memtools.find_critical`.
        inputs: As there.
        radius: As there.
        bounds: As there.
        embedding: As there.
        batch_size: As there.

    Returns:
        s of shape ``(n,)``, in the dtype of the logits' gradients; infinite where all slopes are
        zero or NaN, which says nothing.

    Raises:
        TypeError: As for :func:`memtools.find_critical`.
        ValueError: As there.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), model.bias.data.zero_()
        >>> memtools.linear_reach(model, torch.tensor([[0.05], [5.0]]), radius=0.1)
        tensor([2.0000, 0.0200])
    """
    options = Options(radius, bounds, embedding, batch_size=batch_size)
    with Session.over(model, inputs, options) as session:
        chunks = session.everyone.split(session.batch_size)
        return torch.cat([survey(session, rows).reaches[:, 0] for rows in chunks])
