"""When to stop a training on wrong labels, without right ones to tell.

A question of ours: does the critical sample ratio, or the Gini coefficient of the input gradients,
show the epoch after which a network learns nothing but wrong labels by heart?
"""

from memtools.studies.early_stopping.config import QUESTION, Config
from memtools.studies.early_stopping.experiment import cells, prepare, run
from memtools.studies.early_stopping.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
