"""Callbacks for Lightning: a probe of the model in training, and a ledger of its examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map

from memtools.extras import require
from memtools.guard import NoLogitsError, logits_of
from memtools.ledger import Ledger
from memtools.probe import Probe

require("lightning.pytorch", "lightning")  # says how to install it, where the next line would not
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402

__all__ = ["LedgerCallback", "ProbeCallback", "Record"]

Record = Callable[[Any, Any], dict[str, Any]]
"""``record(outputs, batch)`` -> keyword arguments of :meth:`memtools.Ledger.update`."""


class ProbeCallback(Callback):
    """Measures the model with a :class:`memtools.Probe` after epochs of ``Trainer.fit``.

    The values go to the logger of the trainer, and can be named in ``ModelCheckpoint`` and
    ``EarlyStopping``. ``Trainer.validate`` and ``Trainer.test`` measure as well, and return the
    values among their own, under the name of the stage and a slash; these do not count in the
    running mean. What was measured is kept in the checkpoint; a fit that begins at its first update
    begins the running mean anew.

    Args:
        probe: What to measure, and how often.
        model: Name of the submodule that maps inputs to logits; ``None`` is the ``LightningModule``
            itself, by its ``forward``.

    Raises:
        TypeError: If ``probe`` is none.

    Example:
        >>> import torch, memtools
        >>> from memtools.probe import Probe
        >>> probe = Probe(torch.randn(20, 3), torch.zeros(20).long(), every=5)
        >>> callbacks = [ProbeCallback(probe)]  # for lightning.Trainer(callbacks=callbacks)
    """

    def __init__(self, probe: Probe, *, model: str | None = None) -> None:
        if not isinstance(probe, Probe):
            raise TypeError(f"probe must be a memtools.Probe, got {type(probe).__name__}")
        self.probe, self._model = probe, model

    @property
    def state_key(self) -> str:
        """A name of its own for each probe, so that a fit can have several."""
        return self._generate_state_key(probe=self.probe.name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another training."""
        if trainer.global_step == 0:
            self.probe.reset()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make up for a measurement, if the checkpoint was written just before it."""
        # Not when the epoch starts: a resumed fit may leave out that hook.
        if batch_idx == 0 and trainer.current_epoch > 0:
            values = self._measure(trainer, pl_module, trainer.current_epoch)
            for logger in trainer.loggers if values else ():
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, if it is time to."""
        values = self._measure(trainer, pl_module, trainer.current_epoch + 1)
        if values:
            pl_module.log_dict(values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure in ``Trainer.validate``."""
        self._look(trainer, pl_module, "validate")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure in ``Trainer.test``."""
        self._look(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """What the probe has measured."""
        return self.probe.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.probe.load_state_dict(state_dict)

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, epochs: int
    ) -> dict[str, float]:
        return self.probe(self._measured(pl_module), epochs, step=trainer.global_step)

    def _look(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.state.fn == stage:  # not the validation during a fit
            values = self.probe.measure(self._measured(pl_module), keep=False)
            pl_module.log_dict({f"{stage}/{name}": value for name, value in values.items()})

    def _measured(self, pl_module: LightningModule) -> nn.Module:
        return pl_module if self._model is None else pl_module.get_submodule(self._model)


class LedgerCallback(Callback):
    """Fills a :class:`memtools.Ledger` from the training batches, one update per batch.

    Its state is kept in the checkpoint, so that a resumed fit goes on where it was. Where several
    processes train together, a ledger in a folder has a log for each of them; one in memory is
    whole on each, which gathers what the others record after every batch. An example that a
    distributed sampler repeats to make the batches even is recorded twice.

    Args:
        ledger: The ledger to fill.
        record: ``record(outputs, batch)`` gives the arguments of :meth:`memtools.Ledger.update` by
            name, ``indices`` among them, from what ``training_step`` returned and the batch.
            ``None`` takes ``outputs["logits"]`` and a batch ``(inputs, targets, indices)``.

    Raises:
        TypeError: If ``ledger`` is none.

    Example:
        >>> import memtools
        >>> def record(outputs, batch):
        ...     return {"indices": batch["id"], "loss": outputs["losses"]}
        >>> callbacks = [LedgerCallback(memtools.Ledger(1000), record)]
    """

    def __init__(self, ledger: Ledger, record: Record | None = None) -> None:
        if not isinstance(ledger, Ledger):
            raise TypeError(f"ledger must be a memtools.Ledger, got {type(ledger).__name__}")
        self.ledger, self._record = ledger, record or _record

    @property
    def state_key(self) -> str:
        """A name of its own for a ledger in memory and for one in a folder."""
        return self._generate_state_key(in_folder=self.ledger.folder is not None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record a batch.

        Raises:
            TypeError: If ``record`` gives no dict.
            ValueError: If outputs or batch are not what the default takes, or as
                :meth:`memtools.Ledger.update`.
        """
        values = self._record(outputs, batch)
        if not isinstance(values, dict) or "indices" not in values:
            raise TypeError(
                "record must return a dict of the arguments of Ledger.update, indices among them, "
                f"got {sorted(values) if isinstance(values, dict) else type(values).__name__}"
            )
        if self.ledger.folder is not None:
            self.ledger.update(**{"step": trainer.global_step, **values})
            return
        for part in _of_all_processes(values):
            self.ledger.update(**part)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the ledger holds."""
        return self.ledger.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.ledger.load_state_dict(state_dict)


def _record(outputs: Any, batch: Any) -> dict[str, Any]:
    remedy = (
        "return {'loss': loss, 'logits': logits} from training_step and let the data set give "
        "(input, target, index), or pass LedgerCallback a function record(outputs, batch)"
    )
    if not isinstance(batch, tuple | list) or len(batch) != 3:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(
            f"batch must be (inputs, targets, indices), got {type(batch).__name__}{length}; "
            f"{remedy}"
        )
    try:
        logits = logits_of(outputs["logits"] if isinstance(outputs, dict) else None)
    except (KeyError, NoLogitsError):
        what = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(f"outputs must hold 'logits', got {what}; {remedy}") from None
    _, targets, indices = batch
    return {"indices": indices, "logits": logits, "targets": targets}


def _of_all_processes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has recorded of this batch, the same list on all of them."""
    is_shared = distributed.is_available() and distributed.is_initialized()
    if not is_shared or distributed.get_world_size() == 1:
        return [values]
    mine = tree_map(lambda v: v.detach().cpu() if isinstance(v, Tensor) else v, values)
    parts: list[Any] = [None] * distributed.get_world_size()
    with torch.no_grad():
        distributed.all_gather_object(parts, mine)
    return parts
