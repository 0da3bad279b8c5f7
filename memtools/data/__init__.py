"""Data sets whose items are ``(input, target, index)``, and noise put into them on purpose."""

from memtools.data.noise import Noisy, random_inputs, random_labels
from memtools.data.sets import NAMES, Split, load
from memtools.data.tensors import Tensors, in_memory

__all__ = [
    "NAMES",
    "Noisy",
    "Split",
    "Tensors",
    "in_memory",
    "load",
    "random_inputs",
    "random_labels",
]
