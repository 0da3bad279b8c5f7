"""A minimal trainer: one readable loop, reproducible, resumable, on one device or several."""

from memtools.training.callbacks import Callback
from memtools.training.devices import resolve_device
from memtools.training.ensemble import Member, train_ensemble
from memtools.training.evaluation import Evaluation, evaluate
from memtools.training.run import EpochResult, Run
from memtools.training.tape import TapeRecorder
from memtools.training.trainer import Trainer

__all__ = [
    "Callback",
    "EpochResult",
    "Evaluation",
    "Member",
    "Run",
    "TapeRecorder",
    "Trainer",
    "evaluate",
    "resolve_device",
    "train_ensemble",
]
