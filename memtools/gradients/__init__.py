"""Gradients of single examples, with respect to their inputs and to the weights."""

from memtools.gradients.classes import class_sensitivity
from memtools.gradients.inputs import input_gradient_norms
from memtools.gradients.parameters import parameter_gradient_norms
from memtools.gradients.together import GradientNorms, gradient_norms
from memtools.gradients.watch import Watch, watch

__all__ = [
    "GradientNorms",
    "Watch",
    "class_sensitivity",
    "gradient_norms",
    "input_gradient_norms",
    "parameter_gradient_norms",
    "watch",
]
