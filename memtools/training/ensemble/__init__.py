"""Many small models trained at once, each as :class:`memtools.training.Trainer` trains it alone."""

from memtools.training.ensemble.member import Member
from memtools.training.ensemble.train import train_ensemble

__all__ = ["Member", "train_ensemble"]
