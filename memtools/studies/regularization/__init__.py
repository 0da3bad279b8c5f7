"""What regularisation does to learning real data, and to memorising random labels.

Each regulariser is tried at several strengths, on real labels for what it costs and on random ones
for what it keeps from being memorised: section 5 of Arpit et al. (2017).
"""

from memtools.studies.regularization.config import QUESTION, Config
from memtools.studies.regularization.experiment import cells, prepare, run
from memtools.studies.regularization.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
