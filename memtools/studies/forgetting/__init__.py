"""Dropout and catastrophic forgetting: what is left of one task after another was learnt.

A network is trained on task A and then on task B, with and without dropout, and evaluated on
held-out examples of both after every epoch. After Goodfellow et al. (2013), whose finding Arpit et
al. (2017) take up: networks with dropout forget less.
"""

from memtools.studies.forgetting.config import QUESTION, Config
from memtools.studies.forgetting.experiment import cells, prepare, run
from memtools.studies.forgetting.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
