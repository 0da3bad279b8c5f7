"""The same network on real labels, random labels and random inputs, side by side.

What Arpit et al. (2017) look at while networks train, sections 3 and 4: how fast they fit, how
they generalise, how unequally the examples pull (Gini coefficient of the sensitivities), how many
examples have a decision boundary close by (critical sample ratio).
"""

from memtools.studies.memorization.config import QUESTION, Config
from memtools.studies.memorization.experiment import cells, prepare, run
from memtools.studies.memorization.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
