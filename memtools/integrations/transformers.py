"""A callback for the Trainer of Hugging Face: a probe of the model in training."""

from typing import Any

from torch import nn

from memtools.extras import require
from memtools.probe import Probe

require("transformers", "transformers")  # says how to install it, where the next line would not
from transformers import (  # noqa: E402
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

__all__ = ["ProbeCallback"]


class ProbeCallback(TrainerCallback):
    """Measures the model with a :class:`memtools.Probe` after epochs of ``Trainer.train``.

    The values go into ``trainer.state.log_history``. A callback does not know its trainer: for the
    values to reach the trainer's loggers (``report_to``) as well, it has to be given.

    .. code-block:: python

        trainer.add_callback(ProbeCallback(probe, trainer))

    What was measured is kept in ``trainer_state.json`` of each checkpoint, whatever
    ``restore_callback_states_from_checkpoint`` says; a training that begins at its first update
    begins the running mean anew.

    The examples of the probe are one tensor, the first argument of the model (``pixel_values`` or
    ``input_ids``); for tokens, the probe needs ``embedding``. Sharded weights (FSDP, DeepSpeed's
    third stage) cannot be measured.

    Args:
        probe: What to measure, and how often.
        trainer: By whose method ``log`` to log; ``None`` only appends to the history.

    Raises:
        TypeError: If ``probe`` is none.

    Example:
        >>> import torch, memtools
        >>> from memtools.probe import Probe
        >>> probe = Probe(torch.randn(20, 3, 8, 8), torch.zeros(20).long(), every=5)
        >>> callbacks = [ProbeCallback(probe)]  # for transformers.Trainer(callbacks=callbacks)
    """

    def __init__(self, probe: Probe, trainer: Trainer | None = None) -> None:
        if not isinstance(probe, Probe):
            raise TypeError(f"probe must be a memtools.Probe, got {type(probe).__name__}")
        self.probe, self._trainer = probe, trainer
        # No ExportableState: from that, Trainer would make a callback without a probe.
        self._key = f"memtools.Probe {probe.name}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget another training, or go on where the checkpoint was written."""
        if state.global_step == 0:
            self.probe.reset()
            return
        if self._key in _kept(state):
            self.probe.load_state_dict(_kept(state)[self._key])
        if state.epoch is not None and state.epoch == int(state.epoch):
            # The checkpoint may have been written just before the measurement.
            self._measure(kwargs["model"], state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, if it is time to."""
        self._measure(kwargs["model"], state, control)

    def _measure(self, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        # A little more, since this is a sum of fractions.
        epochs = int((state.epoch or 0) + 1e-6)
        values = self.probe(model, epochs, step=state.global_step)
        if not values:
            return
        measured = self.probe.state_dict()
        _kept(state)[self._key] = {**measured, "sums": measured["sums"].tolist()}
        if self._trainer is None:
            state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})
            return
        # It takes back the order to log the loss of this epoch.
        should_log = control.should_log
        self._trainer.log(values)
        control.should_log = should_log


def _kept(state: TrainerState) -> dict[str, Any]:
    kept: Any = state.stateful_callbacks  # a dict, though it is annotated as a list
    return kept
