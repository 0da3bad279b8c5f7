"""What a user can hang into the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memtools.training.batches import Batch
    from memtools.training.run import EpochResult, Run

__all__ = ["Callback"]


class Callback:
    """Base of all callbacks: override what is needed. Every process of a run calls them."""

    def on_start(self, run: Run) -> None:
        """Called once the run is set up, after a checkpoint has been read."""

    def before_step(self, run: Run, batch: Batch) -> None:
        """Called when the gradients of an update are there, just before the optimiser's step."""

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        """Called after each epoch and its evaluation, before the checkpoint is written."""

    def on_end(self, run: Run) -> None:
        """Called when the training is over, also if it ends in an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors, numbers, strings, and lists or dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
