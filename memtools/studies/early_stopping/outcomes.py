"""The numbers of the study of early stopping: what each rule chose, and what that cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtools.studies.cells import Cell
from memtools.studies.early_stopping.config import CONDITIONS, Config
from memtools.studies.early_stopping.rules import RULES
from memtools.studies.summary import Curves, Outcome, curves_of

__all__ = ["RANDOM", "Choices", "Outcomes", "choices", "outcomes_of"]

RANDOM = "random"
"""Key of the epoch drawn at random, of which the expectation is taken."""


@dataclass(frozen=True)
class Choices(Outcome):
    """All seeds of one share of random labels.

    Attributes:
        chosen: Place among the epochs that each rule chooses, one per seed.
        regrets: Test accuracy at the best epoch less that at the chosen one, one per seed, by rule;
            :data:`RANDOM` is the mean over all epochs. The best is the highest of many noisy
            numbers, which no rule can be expected to reach; it is the same for all rules, so that
            differences of regrets are differences of test accuracy.
    """

    chosen: Mapping[str, NDArray[np.int64]]
    regrets: Mapping[str, Curves]


Outcomes = Mapping[str, Choices]
"""By key of the condition."""


def choices(outcome: Outcome, smoothing: int) -> Choices:
    """Let every rule choose an epoch of every training.

    Args:
        outcome: All seeds of one share of random labels.
        smoothing: Epochs over which curves are averaged for rules that need no labels.
    """
    curves = outcome.curves
    test = curves["test_accuracy"]
    chosen = {
        key: np.array(
            [
                rule({name: curves[name][seed] for name in rule.curves}, smoothing)
                for seed in range(len(test))
            ]
        )
        for key, rule in RULES.items()
    }
    seeds = np.arange(len(test))
    regrets = {key: test.max(1) - test[seeds, places] for key, places in chosen.items()}
    regrets[RANDOM] = test.max(1) - test.mean(1)
    return Choices(outcome.condition, curves, chosen, regrets)


def outcomes_of(rows: Sequence[dict[str, Any]], config: Config) -> Outcomes:
    """Bring the lines of all trainings in order, and let every rule choose."""
    return {
        condition.key: choices(
            Outcome(condition, curves_of(rows, [Cell(condition, seed) for seed in config.seeds])),
            config.smoothing,
        )
        for condition in CONDITIONS
    }
