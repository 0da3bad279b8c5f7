"""The experiments of Arpit et al. (2017), one module each: a ``Config`` and a ``run``."""

from memtools.studies import memorization

__all__ = ["STUDIES"]

STUDIES = {"memorization": memorization}
