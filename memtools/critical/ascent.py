"""The loop of every search: from a start, step by step, until another class is predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from memtools_kernels import box_step
from torch import Tensor

from memtools.critical.findings import Findings
from memtools.critical.result import NEVER
from memtools.critical.session import Session
from memtools.critical.slots import Slots

__all__ = ["Ascent", "ascend", "reach_within"]


@dataclass(frozen=True)
class Ascent:
    """How to climb.

    Attributes:
        weights: Weights of the logits in what is climbed, for the logits, the predicted classes
            and the numbers of the examples: ``(m, C), (m,), (m,) -> (m, C)``.
        unit: Length of a step of size 1, broadcasts against an example.
        sizes: Size of each step, in units.
        noise: Standard deviation of the noise in each step, broadcasts; ``None`` for none.
        start: Start for the examples with some numbers, their boxes' lowest and highest points;
            ``None`` is the examples themselves.
        keeps_slope: Whether the gradient at the start serves for all steps.
        least_reach: Smallest reach of each example with which its search goes on, ``(n,)``, see
            :func:`reach_within`; ``None`` goes on in any case.
        is_last: Whether nothing comes after it.
    """

    weights: Callable[[Tensor, Tensor, Tensor], Tensor]
    unit: Tensor
    sizes: Sequence[float]
    noise: Tensor | None = None
    start: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    keeps_slope: bool = False
    least_reach: Tensor | None = None
    is_last: bool = False


def ascend(session: Session, rows: Tensor, how: Ascent) -> None:
    """Search the boxes of some examples, and note what is found.

    An example leaves with the first point of another class, after its last step, and when its
    reach or what may be spent on it is at an end.
    """
    searched, findings = session.searched, session.findings

    def arrive(entering: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centres = searched.centres[entering]
        low, high = session.box.walls(centres)
        return centres if how.start is None else how.start(entering, low, high), low, high

    sizes = torch.tensor([*how.sizes, 0.0], device=rows.device)
    slots = Slots(rows, searched.centres, session.batch_size, arrive, keeps_slope=how.keeps_slope)
    last = len(how.sizes)
    judged: list[Tensor] = []
    while len(slots) and not findings.watch.is_over:
        rows, points, steps = slots.rows, slots.points, slots.steps
        is_start = steps == 0
        examples = is_start if how.start is None else None
        batch = _Batch(rows, points, examples)

        slope = slots.slopes
        if bool(is_start.any() if how.keeps_slope else (steps < last).any()):
            logits, climbing = searched.gradients(
                points, rows, partial(_weigh, how, findings, batch, judged)
            )
            if climbing is not None and slope is not None:
                slope[is_start] = climbing[is_start]
            elif climbing is not None:
                slope = climbing.contiguous()
        else:
            logits = searched.logits(points, rows)
            judged.append(_judge(findings, logits, batch))
        is_other = judged.pop()
        done = is_other | (steps == last) | findings.is_exhausted(rows)
        # Seldom, since it costs as much as the step itself: after 0, 1, 2, 4, 8, ... steps.
        is_time = (steps & (steps - 1)) == 0
        if examples is not None:
            is_time &= ~examples  # what is searched has been chosen by their slopes
        if how.least_reach is not None and slope is not None and bool(is_time.any()):
            behind = -(logits * how.weights(logits, findings.predicted[rows], rows)).sum(1)
            reach = reach_within(slope, points, slots.low, slots.high, behind)
            is_stuck = is_time & (reach < how.least_reach[rows])
            # Where the model is flat, no search has come to anything yet.
            findings.is_stuck[rows] |= is_stuck & slope.reshape(len(slope), -1).any(1)
            done |= is_stuck
        if bool(done.any()):
            if how.is_last:
                findings.given_up += int((done & ~is_other).sum())
            slots.leave(done, *(() if slope is None or how.keeps_slope else (slope,)))
        if slope is not None and len(slots):
            rows, steps = slots.rows, slots.steps
            keys = None if how.noise is None else findings.keys[rows]
            box_step(
                slots.points, slope[: len(slots)], slots.low, slots.high, unit=how.unit,
                sizes=sizes[steps], noise=how.noise, keys=keys, steps=steps,
            )  # fmt: skip
            steps += 1
        slots.fill()
        findings.look(len(slots))


class _Batch(NamedTuple):
    rows: Tensor
    points: Tensor
    examples: Tensor | None
    """Which points are the examples themselves."""


def _judge(findings: Findings, logits: Tensor, batch: _Batch) -> Tensor:
    """Which points are of another class; the class is that of the example, the first time."""
    rows, points, examples = batch
    predicted = findings.predicted[rows]
    findings.predicted[rows] = torch.where(predicted == NEVER, logits.argmax(1), predicted)
    findings.spent[rows] += 1
    return findings.judge(logits, points, rows, examples)


def _weigh(
    how: Ascent, findings: Findings, batch: _Batch, judged: list[Tensor], logits: Tensor
) -> Tensor | None:
    """What is climbed, after a look at which points are of another class, which is noted."""
    judged.append(_judge(findings, logits, batch))
    if bool(judged[-1].all()):
        return None  # none of them goes on
    findings.spent[batch.rows] += 1
    return how.weights(logits, findings.predicted[batch.rows], batch.rows)


def reach_within(
    slope: Tensor, points: Tensor, low: Tensor, high: Tensor, behind: Tensor
) -> Tensor:
    r"""How far a class would get ahead in the box if the model were linear.

    .. math:: s = \frac{1}{m} \sum_i \lvert g_i \rvert\, \rho_i

    with the gradient g of ``f_c - f_k``, the room rho from the point to the wall that g points to,
    and the lead m of the predicted class k. A class is reached if s is 1 or more.

    Args:
        slope: g, ``(m, ...)``.
        points: Where, ``(m, ...)``.
        low: Lowest points of the boxes.
        high: Highest points of the boxes.
        behind: m, positive, ``(m,)``.

    Returns:
        s, ``(m,)``.
    """
    gain = torch.where(slope > 0, high, low).sub_(points).mul_(slope)
    return gain.reshape(len(gain), -1).sum(1) / behind
