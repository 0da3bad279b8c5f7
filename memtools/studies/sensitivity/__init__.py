"""Loss sensitivity through the whole training, on real data and on noise.

Arpit et al. (2017), section 3.2: how the loss at each time of a training depends on each training
example by way of all updates before, how unequally that is spread over the examples, and how the
loss of each class depends on the examples of each class.
"""

from memtools.studies.sensitivity.config import QUESTION, Config
from memtools.studies.sensitivity.experiment import cells, prepare, run
from memtools.studies.sensitivity.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
