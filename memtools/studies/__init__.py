"""The experiments of Arpit et al. (2017), one package each.

Each has the same face: ``Config``, every setting; ``cells(config)``, its trainings;
``prepare(config)``, its data; ``run(config, out)``, which fills a run folder; and
``summarise(folder, config, data)``, what came of it.
"""

from memtools.studies import csr, memorization, mislabels, sensitivity

__all__ = ["STUDIES"]

STUDIES = {
    "memorization": memorization,
    "sensitivity": sensitivity,
    "csr": csr,
    "mislabels": mislabels,
}
