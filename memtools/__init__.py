"""Is my network learning or memorising? Which examples does it memorise?

The metrics of Arpit et al. (2017), "A Closer Look at Memorization in Deep Networks", for PyTorch.
"""

from memtools import data, models, pruning, scores, training
from memtools.critical import (
    CriticalProbe,
    CriticalSearch,
    critical_radius,
    critical_sample_ratio,
    find_critical,
    linear_reach,
    pixel_bounds,
    pixel_radius,
)
from memtools.gradients import (
    GradientNorms,
    Watch,
    class_sensitivity,
    gradient_norms,
    input_gradient_norms,
    parameter_gradient_norms,
    watch,
)
from memtools.inequality import gini, lorenz_curve
from memtools.ledger import Ledger
from memtools.probe import Probe
from memtools.sensitivity import (
    TrainingTape,
    loss_sensitivity,
    per_class_loss_sensitivity,
    sensitivity_maps,
)
from memtools.suspects import label_issues, suspects

__version__ = "0.1.0"

__all__ = [
    "CriticalProbe",
    "CriticalSearch",
    "GradientNorms",
    "Ledger",
    "Probe",
    "TrainingTape",
    "Watch",
    "class_sensitivity",
    "critical_radius",
    "critical_sample_ratio",
    "data",
    "find_critical",
    "gini",
    "gradient_norms",
    "input_gradient_norms",
    "label_issues",
    "linear_reach",
    "lorenz_curve",
    "loss_sensitivity",
    "models",
    "parameter_gradient_norms",
    "per_class_loss_sensitivity",
    "pixel_bounds",
    "pixel_radius",
    "pruning",
    "scores",
    "sensitivity_maps",
    "suspects",
    "training",
    "watch",
]
