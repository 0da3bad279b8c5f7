"""How wide a network has to be to do its best, the more of its examples are noise.

Arpit et al. (2017), section 4.4, effective capacity: validation accuracy against the width of a
network with 0 to 80% of the inputs, or of the labels, random; and with those examples removed.
"""

from memtools.studies.capacity.config import QUESTION, Config
from memtools.studies.capacity.experiment import cells, prepare, run
from memtools.studies.capacity.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
