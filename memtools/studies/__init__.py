"""The experiments of Arpit et al. (2017), one package each.

Each has the same face: ``QUESTION``, what it asks; ``Config``, every setting;
``cells(config)``, its trainings; ``prepare(config)``, its data; ``run(config, out)``, which fills a
run folder; and ``summarise(folder, config, data)``, what came of it. ``sweep`` shares a run among
processes.
"""

from memtools.studies import (
    capacity,
    convergence,
    csr,
    early_stopping,
    easy_examples,
    forgetting,
    memorization,
    mislabels,
    pruning,
    regularization,
    sensitivity,
)
from memtools.studies.sharing import study_of, sweep

__all__ = ["STUDIES", "study_of", "sweep"]

STUDIES = {
    "easy-examples": easy_examples,
    "sensitivity": sensitivity,
    "capacity": capacity,
    "convergence": convergence,
    "csr": csr,
    "regularization": regularization,
    "forgetting": forgetting,
    "pruning": pruning,
    "early-stopping": early_stopping,
    "mislabels": mislabels,
    "memorization": memorization,
}
