"""A training step with and without ``memtools.watch``, all norms read in every step."""

import contextlib
import copy

import torch
from torch.nn import functional as F

import memtools
from bench.problems import Problem
from bench.timing import Effort, Timing, in_turn

CHECKED_STEPS = 50


class Training:
    """A copy of the problem's model, trained on its batch again and again."""

    def __init__(self, problem: Problem) -> None:
        _, model, self.inputs, self.targets = problem
        self.model = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def step(self, watched: memtools.Watch | None = None) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.inputs), self.targets).backward()
        if watched is not None:
            watched.input_gradient_norms()
            watched.parameter_gradient_norms()
        self.optimizer.step()


def cost_of_watching(problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Timings of a step under the empty name, and of a watched one under ``watch``."""
    alone, other = Training(problem), Training(problem)
    with memtools.watch(other.model) as watched:
        return in_turn(alone.step, {"watch": lambda: lambda: other.step(watched)}, effort)


def same_weights(problem: Problem, seconds: float) -> bool:
    """Whether a watched training ends in the same weights, bit for bit.

    Args:
        problem: Its batch is cut where the steps on all of it would take more than 5 seconds.
        seconds: What a step takes.
    """
    n = max(4, min(len(problem.inputs), int(len(problem.inputs) * 5 / (CHECKED_STEPS * seconds))))
    small = problem._replace(inputs=problem.inputs[:n], targets=problem.targets[:n])
    ends = []
    for watching in (False, True):
        training = Training(small)
        with memtools.watch(training.model) if watching else contextlib.nullcontext() as watched:
            for _ in range(CHECKED_STEPS):
                training.step(watched)
        ends.append(list(training.model.parameters()))
    return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
