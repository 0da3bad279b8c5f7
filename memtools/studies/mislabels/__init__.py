"""Which scores find wrong labels.

A share of the training labels is made wrong; each score ranks the examples, and the area under the
ROC curve says how well the wrong ones come out on top. After the tables of Ravikumar et al. (2025),
beside confident learning (Northcutt et al. 2021) by cleanlab where that is installed.
"""

from memtools.studies.mislabels.config import QUESTION, Config
from memtools.studies.mislabels.experiment import cells, prepare, run
from memtools.studies.mislabels.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
