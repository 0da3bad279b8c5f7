"""A search that finds more than LASS with far fewer passes.

Measured facts make it what it is (``python -m bench.critical`` has the figures). Most of the cost
of a search goes to examples that are never critical, and the slopes at an example tell these from
the others: so they are screened. Most critical examples flip in the corner of the box that the
slope points to: so that is tried first. What a search misses has to do with last steps that are too
long, and with other classes than the nearest: so steps shrink, and classes get a search of their
own. And where no point of the box would flip the class by the slope at the point reached, hardly
anything was ever found later: so a search ends there.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from memtools_kernels import box_step
from torch import Tensor

from memtools.critical.ascent import Ascent, ascend, reach_within
from memtools.critical.findings import lead, weights_of_pair
from memtools.critical.result import Screening
from memtools.critical.session import Session
from memtools.critical.streams import uniform

__all__ = ["passes_of", "search_thoroughly", "survey"]

PASSES = 100
"""Passes per example at effort 1: those of 50 steps of projected gradient descent."""

LEAST_EFFORT = 0.1

CLASSES, FEWEST_CLASSES = 5, 3
"""Nearest classes that are surveyed at effort 1, more at a greater one; and at the least."""

LEAST_REACH = 0.3
"""Examples are left out whose slopes bring no class that part of the way to a flip, and a search
ends where the slope at the point reached does not."""

OPEN = 0.15
"""Within so much of a flip by the slope, a search that ended early does not speak against another
one from elsewhere."""

AUDITED = 0.05
"""Share of the examples left out that is searched all the same."""

AUDIT = 1
"""Names the random choice of these."""

FIRST_STEP, LAST_STEP = 0.6, 0.02
"""Of a search, in radii."""

STEPS, TARGETED_STEPS = 20, 8


@dataclass(frozen=True)
class Survey:
    """What the slopes at some examples say.

    Attributes:
        predicted: Predicted class, ``(m,)``.
        classes: The nearest other classes, by reach, farthest reach first, ``(m, c)``.
        reaches: Their reaches, see :func:`reach_within`; infinite where the slope says nothing.
        corners: Corner of the box towards the first of them, ``(m, ...)``.
    """

    predicted: Tensor
    classes: Tensor
    reaches: Tensor
    corners: Tensor


def passes_of(effort: float) -> int:
    """Passes that may be spent on an example.

    Raises:
        ValueError: If the effort is none.
    """
    if not LEAST_EFFORT <= effort < float("inf"):
        raise ValueError(f"effort must be a number from {LEAST_EFFORT}, got {effort}")
    return round(PASSES * effort)


def survey(session: Session, rows: Tensor, count: int = CLASSES) -> Survey:
    """Look at the slopes of the nearest classes, by one forward pass and one backward for each."""
    centres = session.searched.centres[rows]
    low, high = session.box.walls(centres)
    nearest = Tensor()

    def weights(logits: Tensor) -> list[Tensor]:
        nonlocal nearest
        own = logits.argmax(1)
        others = logits.scatter(1, own[:, None], -torch.inf)
        nearest = others.topk(min(count, logits.shape[1] - 1)).indices
        return [weights_of_pair(logits, own, other) for other in nearest.unbind(1)]

    logits, slopes = session.searched.several_gradients(centres, rows, weights)
    predicted = logits.argmax(1)
    behind = logits.gather(1, predicted[:, None]) - logits.gather(1, nearest)
    reaches = torch.stack(
        [
            reach_within(slope, centres, low, high, away)
            for slope, away in zip(slopes, behind.unbind(1), strict=True)
        ],
        1,
    )
    # A slope of zero, as of a saturated model, or one that is NaN does not say "far".
    if not bool((reaches > 0).all()):
        is_flat = torch.stack([~(s.reshape(len(s), -1).abs().sum(1) > 0) for s in slopes], 1)
        reaches = reaches.masked_fill(is_flat | reaches.isnan(), torch.inf)
    reaches, order = torch.sort(reaches, dim=1, descending=True, stable=True)
    best = slopes[0].contiguous()
    for k, slope in enumerate(slopes[1:], 1):
        is_best = (order[:, 0] == k).nonzero().flatten()
        best[is_best] = slope[is_best]
    corners = centres.clone(memory_format=torch.contiguous_format)
    sizes = torch.full_like(reaches[:, 0], 2)
    box_step(corners, best, low, high, unit=session.box.radius, sizes=sizes)
    return Survey(predicted, nearest.gather(1, order), reaches, corners)


def search_thoroughly(session: Session) -> Screening | None:
    """Search the boxes of all examples, see :func:`memtools.find_critical`.

    Returns:
        What leaving out examples has cost, ``None`` if none was left out.
    """
    findings = session.findings
    effort = findings.most_spent / PASSES
    count, restarts = max(FEWEST_CLASSES, round(CLASSES * effort)), math.ceil(effort)
    # What the first looks and the last one leave of a small effort.
    steps = min(STEPS, (findings.most_spent - count - 4) // 2)
    chunks = []
    for rows in session.everyone.split(session.batch_size):
        if findings.watch.is_over:
            break
        chunks.append(_first_look(session, rows, count))
    if not chunks:
        return None
    reaches, classes = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    is_far = reaches[:, 0] < LEAST_REACH
    audited = is_far & (uniform(findings.keys[: len(is_far)], AUDIT) < AUDITED)
    # The slope, which is what is audited, does not end the search of an audited example.
    least_reach = torch.where(audited, -torch.inf, LEAST_REACH).to(reaches.dtype)
    live = ~is_far | audited

    def remaining(wanted: Tensor) -> Tensor:
        rows = (wanted & ~findings.is_found[: len(wanted)]).nonzero().flatten()
        return rows[~findings.is_exhausted(rows)]

    def climb(rows: Tensor, weights: Any, sizes: list[float], start: Any = None) -> None:
        how = Ascent(weights, session.box.radius, sizes, start=start, least_reach=least_reach)
        ascend(session, rows, how)

    shrinking = _shrinking(steps)
    climb(remaining(live), _ahead, shrinking, partial(_corners, session))
    for number in range(restarts):
        is_open = ((reaches[:, 0] - 1).abs() < OPEN) | ~findings.is_stuck[: len(is_far)]
        hopeful = ~is_far & is_open
        climb(remaining(hopeful), _ahead, shrinking, partial(_anywhere, session, number))
    for k in range(1, reaches.shape[1]):  # the corner was that of the first one
        near = live & (reaches[:, k] >= LEAST_REACH)
        to_corner_and_on = [2.0, *_shrinking(TARGETED_STEPS)]
        climb(remaining(near), partial(_towards, classes[:, k]), to_corner_and_on)
    if not bool(is_far.any()):
        return None
    missed = findings.is_found[: len(audited)] & audited
    return Screening(*(int(mask.sum()) for mask in (is_far, audited, missed)))


def _first_look(session: Session, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Survey some examples, and try the corner of each that is not far from a boundary."""
    findings, seen = session.findings, survey(session, rows, count)
    findings.predicted[rows] = seen.predicted
    findings.spent[rows] += 1 + seen.classes.shape[1]
    findings.points[rows] = seen.corners
    is_near = ~(seen.reaches[:, 0] < LEAST_REACH)
    near = rows[is_near]
    if len(near):
        findings.spent[near] += 1
        corners = seen.corners[is_near]
        findings.judge(session.searched.logits(corners, near), corners, near)
    findings.look(len(rows))
    return seen.reaches, seen.classes


def _shrinking(steps: int) -> list[float]:
    """Half a period of a cosine, from the first step to the last."""
    span = FIRST_STEP - LAST_STEP
    return [LAST_STEP + span * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]


def _ahead(logits: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    """Climb towards whichever other class is best at the moment."""
    return weights_of_pair(logits, predicted, lead(logits, predicted)[1])


def _towards(targets: Tensor, logits: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    """Climb towards one class, ``targets[rows]``."""
    return weights_of_pair(logits, predicted, targets[rows])


def _corners(session: Session, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Start from the corner that the survey has left among the points."""
    return session.findings.points[rows]


def _anywhere(session: Session, number: int, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Start at random, from a stream of its own for each example and number of the attempt."""
    points = session.searched.centres[rows].clone(memory_format=torch.contiguous_format)
    width, keys = session.box.radius, session.findings.keys[rows]
    box_step(
        points, torch.zeros_like(points), low, high, unit=width, noise=width,
        sizes=torch.zeros(len(rows), device=rows.device), keys=keys,
        steps=torch.full_like(rows, number),
    )  # fmt: skip
    return points
