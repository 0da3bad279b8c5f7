"""Which examples are easy, and whether networks agree on it.

Arpit et al. (2017), section 3.1: a hundred networks, each from other weights and in another order,
see the data once; how many of them get an example right says how easy it is. On noise, where there
is nothing to learn but the examples themselves, that number is little more than chance.
"""

from memtools.studies.easy_examples.config import QUESTION, Config
from memtools.studies.easy_examples.experiment import cells, prepare, run
from memtools.studies.easy_examples.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
