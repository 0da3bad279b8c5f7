"""Critical sample ratio while networks learn real data and ever more noise.

Arpit et al. (2017), section 4: how many examples have a decision boundary close by, held out and
in training, over the training and with the share of random labels or inputs, beside the accuracy.
"""

from memtools.studies.csr.config import QUESTION, Config
from memtools.studies.csr.experiment import cells, prepare, run
from memtools.studies.csr.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
