"""The history of every example over a training run, keyed by the example's index."""

from memtools.ledger.ledger import Ledger

__all__ = ["Ledger"]
