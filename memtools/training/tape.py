"""Records the training of a :class:`Trainer` for its loss sensitivity."""

import os

from memtools.sensitivity import TrainingTape
from memtools.training.batches import Batch
from memtools.training.callbacks import Callback
from memtools.training.run import Run

__all__ = ["TapeRecorder"]


class TapeRecorder(Callback):
    """Callback that records every update on a :class:`memtools.TrainingTape`.

    Args:
        every: As for :class:`memtools.TrainingTape`.
        store: As for :class:`memtools.TrainingTape`.

    Attributes:
        tape: The tape, once the training has begun.
    """

    def __init__(self, *, every: int = 1, store: str | os.PathLike[str] | None = None) -> None:
        self.tape: TrainingTape | None = None
        self._every, self._store = every, store

    def on_start(self, run: Run) -> None:
        """Begin a tape.

        Raises:
            ValueError: If the training goes on from a checkpoint, or on several processes.
        """
        if run.updates:
            raise ValueError(
                f"the training goes on after {run.updates} updates, which no tape holds; record it "
                "from its first update, without a checkpoint"
            )
        if run.ranks.world_size > 1:
            raise ValueError("a tape records the training of one process; start one only")
        if self.tape is not None:
            self.tape.close()
        self.tape = TrainingTape(
            run.model, run.optimizer, loss_fn=run.loss_fn, every=self._every, store=self._store
        )

    def before_step(self, run: Run, batch: Batch) -> None:
        """Record the update."""
        assert self.tape is not None
        self.tape.record(batch.indices)

    def on_end(self, run: Run) -> None:
        """Let go of the model; the tape stays."""
        if self.tape is not None:
            self.tape.close()
