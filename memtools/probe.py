"""Fixed examples on which a model is measured again and again while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from memtools import scores
from memtools.batch import (
    LossFunction,
    check_batch,
    check_chunk_size,
    check_tensor,
    check_whole,
    per_example_losses,
)
from memtools.critical import critical_sample_ratio
from memtools.gradients import input_gradient_norms
from memtools.guard import Forward, untouched, unwrap
from memtools.inequality import gini

__all__ = ["Log", "Probe"]

Log = Callable[[dict[str, float], int], object]
"""``log(values, step)``, for instance from :mod:`memtools.integrations.loggers`."""


class Probe:
    """Measures a model in training on the same examples, every so many epochs.

    What it gives, with the model in eval mode, each under the name of the probe and a slash:

    ``loss``, ``accuracy``
        Means over the examples.
    ``gini_instantaneous``
        Gini coefficient of the input gradient norms at the present weights.
    ``gini_of_running_mean``
        That of their means over all measurements so far. It is the one that separates real data,
        where a few examples matter all the time, from noise, where all come to matter alike.
    ``critical_sample_ratio``
        If a radius is given, see :func:`memtools.critical_sample_ratio`.

    Where logits or gradients are not finite, as in a training that diverges, the values are NaN,
    and the means stay as they were: a probe does not stop a training.

    .. code-block:: python

        probe = memtools.Probe(inputs, targets, log=to_tensorboard(writer))
        for epoch in range(1, epochs + 1):
            train_one_epoch(model)
            probe(model, epoch)

    For Lightning and Hugging Face: :mod:`memtools.integrations`. Where several processes train
    together, each may call the probe, since none waits for another; only the first logs.

    Args:
        inputs: Examples, ``(n, ...)``, floating point, or integer for a model that embeds them; a
            few hundred are enough. A copy is kept.
        targets: Class numbers ``(n,)``, or whatever ``loss_fn`` takes; the accuracy is left out
            where they are no integers of shape ``(n,)``.
        every: Measure after every so many epochs, beside the first.
        radius: Half-width of the box that is searched for critical samples, in the units of the
            inputs; ``None`` does not search.
        critical: What else :func:`memtools.critical_sample_ratio` takes, by name.
        loss_fn: ``loss_fn(logits, targets)`` -> losses ``(n,)``; ``None`` is the cross-entropy.
        embedding: For integer inputs, the embedding that looks them up, or its name.
        chunk_size: Examples a pass; ``None`` takes all at once.
        name: What the values are called before the slash.
        log: Called as ``log(values, step)`` with each measurement.

    Attributes:
        measurements: Number of measurements in the running mean.

    Raises:
        TypeError: If inputs or targets are no tensors, or the embedding is asked for but missing.
        ValueError: If they do not fit each other, or a setting is out of range.

    Example:
        >>> import torch, memtools
        >>> from memtools.probe import Probe
        >>> probe = Probe(torch.randn(20, 3), torch.zeros(20).long(), radius=0.1)
        >>> sorted(probe(torch.nn.Linear(3, 2), epoch=1))
        ['probe/accuracy', 'probe/critical_sample_ratio', 'probe/gini_instantaneous',
         'probe/gini_of_running_mean', 'probe/loss']
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        every: int = 1,
        radius: float | Tensor | None = None,
        critical: dict[str, Any] | None = None,
        loss_fn: LossFunction | None = None,
        embedding: str | nn.Module | None = None,
        chunk_size: int | None = None,
        name: str = "probe",
        log: Log | None = None,
    ) -> None:
        check_tensor("targets", targets)
        check_batch(inputs, targets, tokens=True)
        self._chunk_size = check_chunk_size(chunk_size, len(inputs))
        if check_whole("every", every) < 1:
            raise ValueError(f"every must be at least 1 epoch, got {every}")
        if critical is not None and radius is None:
            raise ValueError(
                "critical says how to search for critical samples, and radius is missing; pass "
                "radius, the half-width of the box in the units of the inputs"
            )
        self.inputs, self.targets = inputs.detach().clone(), targets.detach().clone()
        self.every, self.name, self.log = every, name, log
        self._radius, self._critical = radius, critical or {}
        self._loss_fn, self._embedding = loss_fn, embedding
        self.reset()

    def reset(self) -> None:
        """Forget all measurements, for another training."""
        self.measurements = 0
        self._epoch = -1
        self._sums = torch.zeros(len(self.inputs), dtype=torch.float64)

    def __call__(
        self, model: nn.Module, epoch: int, *, step: int | None = None
    ) -> dict[str, float]:
        """Measure if it is time to: call it after each epoch.

        Args:
            model: The model as it is; it is left so.
            epoch: Number of the epoch that is done, or how many are.
            step: What ``log`` is given as the step; ``None`` is ``epoch``.

        Returns:
            The values by name, empty if it is not time yet, or this epoch was measured before.

        Raises:
            ValueError: If epochs go backwards, or as :meth:`measure`.
        """
        if epoch < self._epoch:
            raise ValueError(
                f"epoch must not go backwards, got {epoch} after {self._epoch}; call probe.reset() "
                "before another training, or make a probe of its own for it"
            )
        if epoch // self.every <= self._epoch // self.every:
            return {}
        values = self.measure(model)
        self._epoch = epoch
        if self.log is not None and _is_first_process():
            self.log(values, epoch if step is None else step)
        return values

    def measure(self, model: nn.Module, *, keep: bool = True) -> dict[str, float]:
        """Measure now.

        Args:
            model: The model as it is; it is left so.
            keep: Whether the gradient norms count in the running mean.

        Returns:
            The values by name.

        Raises:
            TypeError: If ``model`` is no ``nn.Module``.
            ValueError: If the model does not fit the examples, couples them, or draws random
                numbers in eval mode.
        """
        inputs, targets = self._on_device(model)
        with untouched(model, evaluating=True) as forward:
            with torch.no_grad():
                chunks = inputs.split(self._chunk_size)
                logits = torch.cat([forward(x) for x in chunks])
            values = self._values(forward, logits, inputs, targets, keep)
        return {f"{self.name}/{key}": value for key, value in values.items()}

    def _values(
        self, forward: Forward, logits: Tensor, inputs: Tensor, targets: Tensor, keep: bool
    ) -> dict[str, float]:
        has_classes = targets.ndim == 1 and not targets.is_floating_point()
        norms = torch.full(targets.shape[:1], torch.nan)
        values = dict.fromkeys(("loss", *(["accuracy"] if has_classes else [])), torch.nan)
        is_finite = bool(logits.isfinite().all())
        if is_finite:
            values["loss"] = float(per_example_losses(self._loss_fn, logits, targets).mean())
            if has_classes:
                values["accuracy"] = float(scores.correctness(logits, targets).float().mean())
            norms = input_gradient_norms(
                forward.model,
                inputs,
                targets,
                loss_fn=self._loss_fn,
                chunk_size=self._chunk_size,
                embedding=self._embedding,
            )
        values |= self._ginis(norms.double().cpu(), keep)
        if self._radius is not None:
            values["critical_sample_ratio"] = (
                float(self._ratio(forward.model, inputs)) if is_finite else torch.nan
            )
        return values

    def _ginis(self, norms: Tensor, keep: bool) -> dict[str, float]:
        counts = bool(norms.isfinite().all())
        sums, measurements = self._sums, self.measurements
        if counts:
            sums, measurements = sums + norms, measurements + 1
        if keep:
            self._sums, self.measurements = sums, measurements
        return {
            "gini_instantaneous": float(gini(norms)) if counts else torch.nan,
            "gini_of_running_mean": float(gini(sums)) if measurements else torch.nan,
        }

    def _ratio(self, model: nn.Module, inputs: Tensor) -> Tensor:
        assert self._radius is not None
        options = {"batch_size": self._chunk_size, "embedding": self._embedding, **self._critical}
        if inputs.is_floating_point():
            options["embedding"] = None
        return critical_sample_ratio(model, inputs, radius=self._radius, **options)

    def _on_device(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        weight = next(unwrap(model).parameters(), None) if isinstance(model, nn.Module) else None
        if weight is not None:
            self.inputs, self.targets = (t.to(weight.device) for t in (self.inputs, self.targets))
        inputs = self.inputs
        if weight is not None and inputs.is_floating_point() and weight.is_floating_point():
            inputs = inputs.to(weight.dtype)
        return inputs, self.targets

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: a tensor of n numbers and two counts."""
        return {"sums": self._sums, "measurements": self.measurements, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is of another number of examples.
        """
        sums = torch.as_tensor(state["sums"], dtype=torch.float64, device="cpu")
        if sums.shape != self._sums.shape:
            raise ValueError(
                f"state must be of a probe with {len(self._sums)} examples, got one with "
                f"{len(sums)}; give the probe the examples that it had"
            )
        self._sums = sums.clone()
        self.measurements, self._epoch = int(state["measurements"]), int(state["epoch"])


def _is_first_process() -> bool:
    is_shared = distributed.is_available() and distributed.is_initialized()
    return not is_shared or distributed.get_rank() == 0
