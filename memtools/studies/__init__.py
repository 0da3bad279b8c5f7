"""The experiments of Arpit et al. (2017), one package each.

Each has the same face: ``QUESTION``, what it asks; ``Config``, every setting;
``cells(config)``, its trainings; ``prepare(config)``, its data; ``run(config, out)``, which fills a
run folder; and ``summarise(folder, config, data)``, what came of it. ``sweep`` shares a run among
processes.
"""

from memtools.studies import (
    csr,
    easy_examples,
    memorization,
    mislabels,
    pruning,
    sensitivity,
)
from memtools.studies.sharing import study_of, sweep

__all__ = ["STUDIES", "study_of", "sweep"]

STUDIES = {
    "easy-examples": easy_examples,
    "memorization": memorization,
    "sensitivity": sensitivity,
    "csr": csr,
    "mislabels": mislabels,
    "pruning": pruning,
}
