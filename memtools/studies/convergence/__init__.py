"""How the time to fit all examples depends on their number and on the width of the network.

Arpit et al. (2017), section 3.3.2: with more examples, or a narrower network, noise takes much
longer to be fitted; real data, whose examples have something in common, suffer less.
"""

from memtools.studies.convergence.config import QUESTION, Config
from memtools.studies.convergence.experiment import cells, prepare, run
from memtools.studies.convergence.summary import summarise

__all__ = ["QUESTION", "Config", "cells", "prepare", "run", "summarise"]
