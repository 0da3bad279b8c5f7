"""Loss sensitivity through the unrolled training: the public functions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memtools.batch import check_targets, check_tensor, check_whole
from memtools.sensitivity.gathered import ExampleWeights, InputGradients, InputNorms, Sketch
from memtools.sensitivity.objective import terms_of_classes
from memtools.sensitivity.run import Part, Run
from memtools.sensitivity.sweep import Column
from memtools.sensitivity.tape import TrainingTape

__all__ = ["loss_sensitivity", "per_class_loss_sensitivity", "sensitivity_maps"]

MEMORY = 2**30
"""Default bound on the working memory, in bytes."""


def loss_sensitivity(
    tape: TrainingTape,
    data: Any,
    *,
    at: Any = None,
    part: Part = "total",
    p: float = 1,
    objective: Any = None,
    signed: bool = False,
    window: int | None = None,
    sketch: int | None = None,
    memory: int = MEMORY,
    progress: bool = False,
) -> Tensor:
    r"""How the loss after ``t`` updates depends on each training example, through the training.

    .. math:: g_i^t = \lVert \mathrm d L_t / \mathrm d x_i \rVert_p, \qquad
              L_t = \frac 1 n \sum_j \ell(f_{\theta_t}(x_j), y_j)

    the loss sensitivity of Arpit et al. (2017), section 3.2: :math:`\theta_t` itself came from
    updates that used :math:`x_i`, and the derivative goes through all of them, with the batches,
    dropout masks, batch statistics and optimiser of the recorded training. Its mean over ``t`` is
    the paper's :math:`\bar g_x`. ``L_t`` is evaluated in eval mode: no dropout, BatchNorm with its
    running statistics (through which the derivative goes as well).

    All evaluation times go back through the training together: about ``1 + 2 K`` forward and
    backward passes for each update with ``K`` times after it, and no graph of more than one update
    is held. Every update is replayed and compared with what was recorded.

    Memory: ``K (n d + 3 P)`` numbers for ``n`` inputs of ``d`` elements and ``P`` weights; times
    are taken in as many sweeps as ``memory`` asks for. Results do not depend on it, but for
    rounding.

    Args:
        tape: The recorded training.
        data: What it trained on: ``(inputs, targets)`` or a map-style data set, indexed as
            recorded.
        at: Numbers of updates between 0 and ``len(tape)``, in any order; ``None`` takes all from
            1. See :meth:`TrainingTape.spaced` for fewer.
        part: ``"direct"`` is what comes of :math:`x_i` being in :math:`L_t` itself, ``"indirect"``
            what comes through :math:`\theta_t`, ``"total"`` the norm of their sum.
        p: 1, 2 or ``math.inf``.
        objective: The set whose mean loss is :math:`L_t`, in place of the training set; there is
            no direct part then.
        signed: Give :math:`\mathrm d L_t / \mathrm d w_i` in place of a norm, where :math:`w_i = 1`
            is the weight of example i's loss in its batches: positive where more of the example
            raises :math:`L_t`. With validation data as ``objective`` that is which examples hurt.
        window: *Approximation*: go back so many updates at most from each time. Costs ``window``
            updates per time rather than ``t``.
        sketch: *Approximation*: estimate the norm (p = 1 or 2) from so many random projections
            of the gradient, instead of keeping all its ``d`` elements. For ``m`` of them the
            standard error is :math:`\pi / 2 \sqrt m` (p = 1) or :math:`1 / \sqrt{2m}` (p = 2) of
            the norm.
        memory: Bound on the working memory in bytes; at least one time is worked on.
        progress: Whether to show a bar (needs ``memtools[study]``).

    Returns:
        Shape ``(len(at), n)``, in the dtype of the model and in units of loss per unit of the
        input (of loss, if ``signed``).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, the data are not those of the training, weights
            were changed outside the recorded updates, the model does not replay as recorded or has
            no second derivative, with the number of the update.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> inputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> tape = memtools.TrainingTape(model, optimizer)
        >>> for epoch in range(2):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        ...     tape.record(torch.arange(4))
        ...     optimizer.step()
        >>> sensitivity = memtools.loss_sensitivity(tape, (inputs, targets))
        >>> memtools.gini(sensitivity.mean(0)) < 1
        tensor(True)
    """
    _check_p(p)
    if signed and (part == "direct" or sketch is not None or p != 1):
        raise ValueError(
            "signed gives a derivative through the training, neither the direct part nor a norm; "
            f"leave part, p and sketch at their defaults, got {part!r}, {p} and {sketch}"
        )
    if sketch is not None and (check_whole("sketch", sketch) < 1 or p == math.inf):
        raise ValueError(f"sketch must be at least 1, for p = 1 or 2, got {sketch} for p = {p}")
    run = Run(tape, data, at, part, objective, window, memory, progress)
    inputs = run.examples.inputs
    gathered: InputGradients
    if signed:
        gathered = ExampleWeights(())
    elif sketch is not None:
        gathered = Sketch(inputs[0], p, sketch)
    else:
        gathered = InputNorms(inputs.shape[1:], p)
    return run.rows(gathered, torch.arange(len(inputs)))


def per_class_loss_sensitivity(
    tape: TrainingTape,
    data: Any,
    *,
    at: Any = None,
    part: Part = "total",
    p: float = 1,
    num_classes: int | None = None,
    window: int | None = None,
    memory: int = MEMORY,
    progress: bool = False,
) -> Tensor:
    r"""How the loss of each class depends on the training examples of each class.

    .. math:: \bar g_{ij} = \operatorname{mean}_{t,\; x : y(x) = j}
              \lVert \mathrm d L_t(y = i) / \mathrm d x \rVert_p, \qquad
              L_t(y = i) = \frac 1 n \sum_{k : y_k = i} \ell(f_{\theta_t}(x_k), y_k)

    through the training, as :func:`loss_sensitivity`, for the parts of the mean loss that the
    classes contribute (Arpit et al. 2017, section 3.2). Costs as much as that with C times as many
    evaluation times.

    Args:
        tape: The recorded training.
        data: What it trained on, with class numbers as targets.
        at: Numbers of updates to average over; ``None`` takes all from 1.
        part: As for :func:`loss_sensitivity`.
        p: 1, 2 or ``math.inf``.
        num_classes: C; ``None`` takes the largest class number plus one.
        window: *Approximation*: go back so many updates at most.
        memory: Bound on the working memory in bytes.
        progress: Whether to show a bar (needs ``memtools[study]``).

    Returns:
        Shape ``(C, C)``; row i is the loss of class i, column j the examples of class j, NaN for a
        class without examples.

    Raises:
        TypeError: As for :func:`loss_sensitivity`.
        ValueError: As for :func:`loss_sensitivity`, or if targets are no class numbers.
    """
    _check_p(p)
    run = Run(tape, data, at, part, None, window, memory, progress)
    targets = run.examples.targets
    classes = num_classes
    check_targets(targets, int(targets.max()) + 1 if targets.ndim == 1 else 2)
    if classes is None:
        classes = int(targets.max()) + 1
    elif check_whole("num_classes", classes) <= int(targets.max()):
        raise ValueError(
            f"num_classes must be more than the largest class number, {int(targets.max())}, "
            f"got {classes}; leave it out"
        )
    members = F.one_hot(targets.long(), classes).to(run.examples.inputs)
    counts = members.sum(0)
    gathered = InputNorms(run.examples.inputs.shape[1:], p)
    found: list[tuple[int, Tensor]] = []

    def finish(columns: Sequence[Column], sums: Tensor) -> None:
        rows = (gathered.result(sums) @ members / counts) * run.repeats(columns)[:, None]
        found.extend((column.term, row) for column, row in zip(columns, rows, strict=True))

    places = torch.arange(len(targets))
    run.sweep(gathered, places, terms_of_classes(targets, classes), finish)
    of_class = [[row for term, row in found if term == c] for c in range(classes)]
    return torch.stack([torch.stack(rows).sum(0) for rows in of_class]) / len(run.times)


def sensitivity_maps(
    tape: TrainingTape,
    data: Any,
    examples: Any,
    *,
    at: Any = None,
    part: Part = "total",
    objective: Any = None,
    window: int | None = None,
    memory: int = MEMORY,
    progress: bool = False,
) -> Tensor:
    r"""Where in an input the loss sensitivity sits: :math:`\mathrm d L_t / \mathrm d x_i` itself.

    The p-norms of these over the elements of an input are what :func:`loss_sensitivity` gives.

    Args:
        tape: The recorded training.
        data: What it trained on.
        examples: Numbers of the examples that are wanted, without repeats.
        at: Numbers of updates; ``None`` takes all from 1.
        part: As for :func:`loss_sensitivity`.
        objective: As for :func:`loss_sensitivity`.
        window: *Approximation*: go back so many updates at most.
        memory: Bound on the working memory in bytes.
        progress: Whether to show a bar (needs ``memtools[study]``).

    Returns:
        Signed derivatives of shape ``(len(at), len(examples), ...)``, one input's shape at the end.

    Raises:
        TypeError: As for :func:`loss_sensitivity`.
        ValueError: As for :func:`loss_sensitivity`, or if ``examples`` are out of range or
            repeated.
    """
    run = Run(tape, data, at, part, objective, window, memory, progress)
    n, shape = len(run.examples), run.examples.inputs.shape[1:]
    try:
        wanted = torch.as_tensor(examples)
        check_tensor("examples", wanted)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"examples must be numbers of examples, got {examples!r}") from error
    wanted = wanted.cpu().flatten()
    if (
        len(wanted) == 0
        or wanted.is_floating_point()
        or wanted.is_complex()
        or wanted.dtype == torch.bool
        or len(wanted.unique()) != len(wanted)
        or not 0 <= int(wanted.min()) <= int(wanted.max()) < n
    ):
        raise ValueError(
            f"examples must be different numbers in 0..{n - 1}, at least one, got {wanted.tolist()}"
        )
    places = torch.full((n,), -1)
    places[wanted.long()] = torch.arange(len(wanted))
    return run.rows(InputGradients(shape), places)


def _check_p(p: float) -> None:
    if p not in (1, 2, math.inf):
        raise ValueError(f"p must be 1, 2 or math.inf, got {p!r}")
