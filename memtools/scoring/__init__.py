"""Scores of every example of a large data set by one model, by any number of processes."""

from memtools.scoring.factories import call_factory
from memtools.scoring.folder import recorded_settings
from memtools.scoring.run import Scored, score
from memtools.scoring.scorer import Scorer
from memtools.scoring.table import read
from memtools.scoring.wanted import SCORES, Wanted

__all__ = [
    "SCORES",
    "Scored",
    "Scorer",
    "Wanted",
    "call_factory",
    "read",
    "recorded_settings",
    "score",
]
