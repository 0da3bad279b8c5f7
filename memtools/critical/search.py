"""The public functions that search for critical samples."""

import torch
from torch import Tensor, nn

from memtools.batch import check_whole
from memtools.critical.auto import passes_of, search_thoroughly
from memtools.critical.box import Bounds, sizes_of
from memtools.critical.lass import lass
from memtools.critical.result import CriticalSearch
from memtools.critical.session import Options, Session

__all__ = ["critical_sample_ratio", "find_critical"]

STEP_OVER_RADIUS = 0.25 / 0.3
NOISE_OVER_RADIUS = 0.2 / 0.3
LASS_STEPS = 100


def find_critical(
    model: nn.Module,
    inputs: Tensor,
    *,
    radius: float | Tensor,
    step_size: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    max_steps: int | None = None,
    bounds: Bounds | None = None,
    method: str = "lass",
    gradient_at: str | None = None,
    effort: float | None = None,
    certify: bool = False,
    embedding: str | nn.Module | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    time_limit: float | None = None,
    progress: bool = False,
) -> CriticalSearch:
    r"""Search a box around each example for a point of another predicted class.

    An example x is critical, Arpit et al. (2017), section 4.1, if

    .. math:: \exists\, x': \; \lVert x' - x \rVert_\infty \le r, \quad
              \arg\max f(x') \ne \arg\max f(x)

    The predicted class counts, not the true label. What a search finds is a lower bound. The model
    is in eval mode for the search.

    **Mind the units of** ``radius``. The paper's 0.3 is on a scale of 0 to 255: for inputs in
    [0, 1] it is ``0.3 / 255``, and for normalised inputs it is divided by the standard deviation of
    the channel as well. :func:`memtools.pixel_radius` converts it. Clipping to the range of pixels
    (``bounds``) can change the count by a fifth: say which one you use.

    ``method="lass"`` is the paper's Langevin adversarial sample search, its algorithm 1. From
    :math:`\tilde x = x`, repeat

    .. math:: \tilde x \leftarrow \operatorname{clip}\bigl(\tilde x
              + \alpha \operatorname{sign} \nabla_{\tilde x} \ell(f(\tilde x), k)
              + \beta \eta,\; x - r,\; x + r\bigr), \qquad \eta \sim N(0, 1)

    with the cross-entropy against the class k predicted at x, until another class is predicted.

    ``method="auto"`` finds more, and takes far fewer passes wherever most examples are not
    critical: it leaves out examples that the slopes of their nearest classes put far from any
    boundary, tries the corner of the box that the slope points to, and climbs from there, from a
    random start, and from the example towards single classes, in shrinking steps. What it leaves
    out is audited, see ``CriticalSearch.screening``.

    A flip is reported only if a plain forward pass of the returned point shows it, by a lead that
    rounding cannot explain: the lead must exceed four times the largest change that was seen when
    every operator of the model was made to round otherwise. So a tie is no flip; where classes tie
    for an example itself, the first of them is its predicted class. The returned points are within
    ``radius`` in the dtype of the inputs, without rounding errors.

    Noise comes from a stream of random numbers of each example, named by its content. So results
    depend neither on ``batch_size`` nor on the order or the company of the examples, but for
    near-ties within the bound on rounding. Examples that are equal get equal results.

    Extra memory: one copy of the inputs, and the activations of one batch.

    Args:
        model: Maps inputs to logits of shape ``(n, C)``.
        inputs: Batch of shape ``(n, ...)``, floating point; token ids with ``embedding``.
        radius: Half-width r of the box **in the units of the inputs**. A tensor that broadcasts
            against one example, such as ``(C, 1, 1)``, gives each channel its own.
        step_size: alpha; ``None`` keeps the paper's ratio, ``radius * 0.25 / 0.3``. LASS only.
        noise: beta; ``None`` keeps the paper's ratio, ``radius * 0.2 / 0.3``; 0 for none. LASS
            only.
        max_steps: Points that are tried for an example at most. ``None`` is 100 for LASS, of which
            the paper gives no number, and is left to ``effort`` otherwise.
        bounds: Smallest and largest allowed input, for instance ``(0, 1)``; ``None`` does not
            clip beyond the box, as in the paper.
        method: ``"lass"`` or ``"auto"``.
        gradient_at: ``"moving"``, the gradient at the moving point, as in the authors' code, or
            ``"start"``, at the example, as the paper prints it. LASS only.
        effort: At effort 1, the default, no example takes more than 100 forward and backward
            passes, and most take less than ten; at another, so many times 100; 0.1 at least.
            ``"auto"`` only.
        certify: Whether to prove for as many examples as can be that they are not critical, by
            interval bounds: ``CriticalSearch.possible_ratio``.
        embedding: A module of the model, or its name, whose output is searched in place of the
            inputs: for token ids their embedding. ``radius``, ``bounds`` and the points are then
            in that space.
        generator: Gives the seed of all streams of noise; ``None`` is a new one with seed 0. The
            global random state is neither read nor changed.
        batch_size: Examples a pass; ``None`` takes 1024, or as many as fit 64 MiB of activations,
            on a GPU a quarter of the free memory.
        time_limit: Seconds after which what was found is returned; ``None`` for no limit.
        progress: Whether to show a progress bar on stderr.

    Returns:
        A :class:`CriticalSearch`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, the batch is empty or integer, logits are not
            finite, examples are coupled, the model draws random numbers in eval mode, or the
            radius is so large that it must be in other units than the inputs.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), model.bias.data.zero_()
        >>> inputs = torch.tensor([[0.05], [5.0]])
        >>> memtools.find_critical(model, inputs, radius=0.1).is_critical
        tensor([ True, False])
    """
    if method not in ("lass", "auto"):
        raise ValueError(f'method must be "lass" or "auto", got {method!r}')
    if gradient_at not in (None, "moving", "start"):
        raise ValueError(
            f'gradient_at must be "moving" or "start", got {gradient_at!r}; leave it out for the '
            "authors' code"
        )
    of_lass = {"step_size": step_size, "noise": noise, "gradient_at": gradient_at}
    for name, value in ({"effort": effort} if method == "lass" else of_lass).items():
        if value is not None:
            other = "auto" if method == "lass" else "lass"
            raise ValueError(
                f'{name} has no meaning for method="{method}", got {value!r}; leave it out, or '
                f'pass method="{other}"'
            )
    most_spent = passes_of(1.0 if effort is None else effort)
    if max_steps is not None and check_whole("max_steps", max_steps) < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}; leave it out for all")

    options = Options(radius, bounds, embedding, generator, batch_size, time_limit, progress)
    with Session.over(model, inputs, options) as session:
        if method == "auto":
            session.begin(most_tried=max_steps or most_spent // 2, most_spent=most_spent)
            screening = search_thoroughly(session)
        else:
            screening, width = None, session.box.radius
            alpha, beta = width * STEP_OVER_RADIUS, width * NOISE_OVER_RADIUS
            if step_size is not None:
                alpha = sizes_of("step_size", step_size, session.searched.centres)
            if noise is not None:
                beta = sizes_of("noise", noise, session.searched.centres)
            session.begin(most_tried=max_steps or LASS_STEPS)
            lass(session, step_size=alpha, noise=beta, gradient_at_start=gradient_at == "start")
        return session.result(screening, certify=certify)


def critical_sample_ratio(
    model: nn.Module,
    inputs: Tensor,
    *,
    radius: float | Tensor,
    step_size: float | Tensor | None = None,
    noise: float | Tensor | None = None,
    max_steps: int | None = None,
    bounds: Bounds | None = None,
    method: str = "lass",
    gradient_at: str | None = None,
    effort: float | None = None,
    embedding: str | nn.Module | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    time_limit: float | None = None,
    progress: bool = False,
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
        effort=effort,
        embedding=embedding,
        generator=generator,
        batch_size=batch_size,
        time_limit=time_limit,
        progress=progress,
    ).ratio
