"""Whether a network generalises better without the examples of high sensitivity.

The question that Arpit et al. (2017) leave open. A network is trained once to score its examples;
then others are trained, for the same number of updates, without the hardest, without the easiest,
and without as many random ones, on real labels and with a part of them wrong.
"""

from memtools.studies.pruning.config import QUESTION, Config
from memtools.studies.pruning.experiment import cells, prepare, run
from memtools.studies.pruning.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
