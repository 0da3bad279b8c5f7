"""The measures as torchmetrics: accumulated over batches, synchronised between processes.

Needs torchmetrics (``pip install "memtools[metrics]"``). The model is an argument of ``update``,
never a part of a metric. In a ``MetricCollection`` pass arguments by name: each metric takes those
that it knows.
"""

from memtools.metrics.classes import ClassSensitivity
from memtools.metrics.convergence import TimeToConvergence
from memtools.metrics.critical import CriticalSampleRatio
from memtools.metrics.inputs import InputGradientGini
from memtools.metrics.misclassification import MisclassificationRate
from memtools.metrics.parameters import ParameterGradientGini
from memtools.metrics.scores import ScoreGini

__all__ = [
    "ClassSensitivity",
    "CriticalSampleRatio",
    "InputGradientGini",
    "MisclassificationRate",
    "ParameterGradientGini",
    "ScoreGini",
    "TimeToConvergence",
]
