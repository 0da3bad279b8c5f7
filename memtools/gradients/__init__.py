"""Gradients of single examples, with respect to their inputs and to the weights."""

from memtools.gradients.classes import class_sensitivity
from memtools.gradients.inputs import input_gradient_norms
from memtools.gradients.parameters import parameter_gradient_norms

__all__ = ["class_sensitivity", "input_gradient_norms", "parameter_gradient_norms"]
