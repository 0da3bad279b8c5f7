"""Critical samples: examples with another predicted class inside a small box around them."""

from memtools.critical.box import pixel_bounds, pixel_radius
from memtools.critical.probe import CriticalProbe
from memtools.critical.radii import critical_radius, linear_reach
from memtools.critical.result import CriticalSearch, Screening
from memtools.critical.search import critical_sample_ratio, find_critical

__all__ = [
    "CriticalProbe",
    "CriticalSearch",
    "Screening",
    "critical_radius",
    "critical_sample_ratio",
    "find_critical",
    "linear_reach",
    "pixel_bounds",
    "pixel_radius",
]
