"""What pages say about the search for critical samples."""

from typing import Any

from memtools.critical.search import NOISE_OVER_RADIUS, STEP_OVER_RADIUS
from memtools.studies.data import Data
from memtools.studies.networks import SearchSettings
from memtools.studies.probes import Sizes

__all__ = ["of_search"]


def of_search(config: SearchSettings, data: Data) -> dict[str, Any]:
    """Names that ``critical.html.j2`` and the pages that include it use."""
    return {
        "sizes": Sizes.of(config, data),
        "step": config.radius * STEP_OVER_RADIUS,
        "noise": config.radius * NOISE_OVER_RADIUS,
    }
