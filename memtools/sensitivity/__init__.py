"""Loss sensitivity through the unrolled training, and its per-class matrix."""

from memtools.sensitivity.measure import (
    loss_sensitivity,
    per_class_loss_sensitivity,
    sensitivity_maps,
)
from memtools.sensitivity.tape import TrainingTape

__all__ = [
    "TrainingTape",
    "loss_sensitivity",
    "per_class_loss_sensitivity",
    "sensitivity_maps",
]
