"""The training loop."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from memtools import seeds
from memtools.batch import LossFunction, check_targets, per_example_losses, unchecked_losses
from memtools.data import Tensors
from memtools.guard import logits_of
from memtools.training.batches import Batch, batches
from memtools.training.callbacks import Callback
from memtools.training.checkpoint import load_checkpoint, save_checkpoint
from memtools.training.devices import Ranks, process_group, resolve_device
from memtools.training.evaluation import evaluate
from memtools.training.run import EpochResult, Run

__all__ = ["Trainer"]

Precision = Literal["float32", "float64", "bfloat16", "float16"]
PLAIN_SGD = partial(SGD, lr=0.01)
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Trainer:
    """Trains a model: same seeds, same machine, same weights.

    The order of the examples and the random state of dropout and noise follow from ``seed`` and
    the epoch alone, so that a run which is killed and called again goes on from its last finished
    epoch and ends in the same weights, bit for bit on the CPU. The global random state is left as
    it was. Under ``torchrun`` the processes share each batch (DDP): ``batch_size`` is the global
    one, the number of steps does not depend on the number of processes, and neither do the weights
    but for rounding. (BatchNorm keeps statistics per process; use SyncBatchNorm on GPUs. Dropout
    masks differ.)

    Attributes:
        model: The model; it is moved to the device and trained in place.
        optimizer: Makes the optimiser from the weights; the default is the paper's plain SGD.
        scheduler: Makes a learning-rate schedule from the optimiser; stepped once an epoch, with
            the validation loss (or the training loss) if it is a ``ReduceLROnPlateau``.
        epochs: Epochs at most.
        batch_size: Examples of an update, over all processes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy. Their mean is minimised.
        seed: Fixes the order of the examples, dropout and noise. Not the initial weights: those
            are the model's.
        device: ``"auto"``, ``"cpu"``, ``"cuda:0"``, ...
        precision: The model and inputs of floating point are cast to ``"float32"`` or
            ``"float64"``; with ``"bfloat16"`` or ``"float16"`` they are float32, and updates run
            under autocast (evaluation does not).
        stop_at_train_accuracy: Stop after the epoch that reaches this training accuracy; 1.0 is
            the paper's convergence.
        stop_when: Stop after the epoch for which this is true.
        callbacks: Called during training, see :class:`Callback`.
        checkpoint: File for the state after each epoch. If it exists, :meth:`fit` goes on from it.
        workers: Processes that load data, for sets that are no tensors. Under ``torchrun`` they
            import the script that was started, which needs ``if __name__ == "__main__":``.
    """

    model: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = PLAIN_SGD
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    epochs: int = 10
    batch_size: int = 128
    loss_fn: LossFunction | None = None
    seed: int = 0
    device: str | torch.device = "auto"
    precision: Precision = "float32"
    stop_at_train_accuracy: float | None = None
    stop_when: Callable[[EpochResult], bool] | None = None
    callbacks: Sequence[Callback] = ()
    checkpoint: str | os.PathLike[str] | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not callable(self.optimizer):
            raise TypeError(
                "optimizer must be a function that makes one from the weights, got "
                f"{type(self.optimizer).__name__}; pass for instance partial(SGD, lr=0.1)"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("float32", "float64", *AUTOCAST):
            raise ValueError(
                f"precision must be float32, float64, bfloat16 or float16, got {self.precision!r}"
            )

    def fit(self, train: Any, validation: Any = None) -> list[EpochResult]:
        """Train until ``epochs`` are done or a stop rule holds.

        Args:
            train: Map-style data set; items ``(input, target)`` or ``(input, target, index)``,
                targets being class numbers.
            validation: The same, evaluated after each epoch.

        Returns:
            One :class:`EpochResult` per epoch, those before a resume included.

        Raises:
            TypeError: If a ``DataLoader`` comes in place of a data set.
            ValueError: If the data are empty, the batch size does not divide among the processes,
                the loss is averaged, or the checkpoint belongs to another run.
            FloatingPointError: If the training diverges.
        """
        for name, data in (("train", train), ("validation", validation)):
            if isinstance(data, DataLoader):
                raise TypeError(f"{name} must be a data set, got a DataLoader; pass its .dataset")
            if data is not None and len(data) == 0:
                raise ValueError(f"{name} is empty; at least one example is needed")
        device = resolve_device(self.device)
        with process_group(device) as ranks, seeds.kept():
            if self.batch_size % ranks.world_size:
                raise ValueError(
                    f"batch_size is global and must divide by the number of processes: "
                    f"got {self.batch_size} for {ranks.world_size}"
                )
            return self._fit(train, validation, device, ranks)

    def _fit(
        self, train: Any, validation: Any, device: torch.device, ranks: Ranks
    ) -> list[EpochResult]:
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        model = self.model.to(device, dtype)
        train, validation = (
            data.to(device, dtype) if isinstance(data, Tensors) else data
            for data in (train, validation)
        )
        optimizer = self.optimizer(p for p in model.parameters() if p.requires_grad)
        schedule = self.scheduler(optimizer) if self.scheduler else None
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
        run = Run(model, optimizer, train, ranks, self.loss_fn)
        stateful = {"model": model, "optimizer": optimizer, "scaler": scaler}
        if schedule:
            stateful["schedule"] = schedule
        stateful |= {f"callback {i}": callback for i, callback in enumerate(self.callbacks)}
        settings = self._settings(run, schedule)
        self._resume(run, stateful, settings)
        wrapped = DistributedDataParallel(model) if ranks.world_size > 1 else model
        try:
            for callback in self.callbacks:
                callback.on_start(run)
            while len(run.results) < self.epochs and not self._should_stop(run):
                learning_rate = float(optimizer.param_groups[0]["lr"])
                loss = self._train_epoch(run, wrapped, scaler, device, dtype)
                result = self._evaluate(run, validation, learning_rate, loss)
                if isinstance(schedule, ReduceLROnPlateau):
                    held_out = result.validation_loss
                    schedule.step(loss if held_out is None else held_out)
                elif schedule:
                    schedule.step()
                run.results.append(result)
                for callback in self.callbacks:
                    callback.on_epoch_end(run, result)
                self._save(run, stateful, settings)
        finally:
            for callback in self.callbacks:
                callback.on_end(run)
        return run.results

    def _train_epoch(
        self,
        run: Run,
        model: nn.Module,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        dtype: torch.dtype,
    ) -> float:
        """Go through the training set once; the mean loss."""
        epoch = len(run.results) + 1
        n = len(run.train)
        order = torch.randperm(n, generator=seeds.generator(self.seed, "order", epoch))
        torch.manual_seed(seeds.derive_seed(self.seed, "noise", epoch, run.ranks.rank))
        model.train()
        total_loss = torch.zeros((), dtype=dtype, device=device)
        for batch in batches(
            run.train,
            order,
            self.batch_size,
            device=device,
            dtype=dtype,
            ranks=run.ranks,
            workers=self.workers,
            seed=seeds.derive_seed(self.seed, "loading", epoch),
        ):
            loss = self._loss(model, batch, run, device)
            run.optimizer.zero_grad()
            # DDP averages gradients over the processes; the mean over the global batch is the sum
            # of the shares, however unequal they are.
            scaler.scale(loss * run.ranks.world_size).backward()
            scaler.unscale_(run.optimizer)
            for callback in self.callbacks:
                callback.before_step(run, batch)
            scaler.step(run.optimizer)
            scaler.update()
            run.updates += 1
            total_loss += loss.detach() * batch.total
        return _finite(float(run.ranks.sum(total_loss)) / n, "mean loss", epoch)

    def _evaluate(
        self, run: Run, validation: Any, learning_rate: float, loss: float
    ) -> EpochResult:
        epoch = len(run.results) + 1
        settings = {"loss_fn": self.loss_fn, "ranks": run.ranks, "workers": self.workers}
        accuracy = evaluate(run.model, run.train, **settings).accuracy
        if validation is None:
            return EpochResult(epoch, run.updates, learning_rate, loss, accuracy)
        held_out = evaluate(run.model, validation, **settings)
        validation_loss = _finite(held_out.loss, "validation loss", epoch)
        return EpochResult(
            epoch, run.updates, learning_rate, loss, accuracy, validation_loss, held_out.accuracy
        )

    def _loss(self, model: nn.Module, batch: Batch, run: Run, device: torch.device) -> torch.Tensor:
        """This process's part of the mean loss over the global batch."""
        autocast = (
            torch.autocast(device.type, AUTOCAST[self.precision])
            if self.precision in AUTOCAST
            else nullcontext()
        )
        with autocast:
            logits = logits_of(model(batch.inputs))
            # Looking at values makes an accelerator wait, so it is done once and not at each step.
            check = per_example_losses if run.updates == 0 else unchecked_losses
            losses = check(self.loss_fn, logits, batch.targets)
            if run.updates == 0 and self.loss_fn is None and isinstance(run.train, Tensors):
                check_targets(run.train.targets, logits.shape[1])
        return losses.sum() * (batch.counts / batch.total)

    def _should_stop(self, run: Run) -> bool:
        if not run.results:
            return False
        last = run.results[-1]
        goal = self.stop_at_train_accuracy
        return (goal is not None and last.train_accuracy >= goal) or (
            self.stop_when is not None and self.stop_when(last)
        )

    def _settings(self, run: Run, schedule: LRScheduler | None) -> dict[str, Any]:
        """What a checkpoint must agree with, for the resumed run to be the same run."""
        # Loading the state of an optimiser or a schedule brings the old learning rate back,
        # whatever the new one is.
        options = {k: v for k, v in run.optimizer.defaults.items() if v}
        plan = schedule.state_dict() if schedule else {}
        plan = {k: v for k, v in plan.items() if isinstance(v, int | float | list | str)}
        return {
            "seed": int(self.seed),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "training examples": len(run.train),
            "optimizer": f"{type(run.optimizer).__name__} {options}",
            "scheduler": f"{type(schedule).__name__} {plan}",
        }

    def _save(self, run: Run, stateful: dict[str, Any], settings: dict[str, Any]) -> None:
        if self.checkpoint is not None and run.ranks.rank == 0:
            state = {name: part.state_dict() for name, part in stateful.items()}
            state["settings"] = settings
            state["updates"] = run.updates
            state["results"] = [asdict(result) for result in run.results]
            save_checkpoint(self.checkpoint, state)
        run.ranks.wait()

    def _resume(self, run: Run, stateful: dict[str, Any], settings: dict[str, Any]) -> None:
        state = None if self.checkpoint is None else load_checkpoint(self.checkpoint)
        if state is None:
            return
        of_run = {"settings", "updates", "results"}
        try:
            before, updates = dict(state["settings"]), int(state["updates"])
            results = [EpochResult.of(values) for values in state["results"]]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.checkpoint} holds something else than the state of a Trainer; "
                "name another file"
            ) from error

        def refuse(difference: str) -> ValueError:
            return ValueError(
                f"checkpoint {self.checkpoint} {difference}; "
                "go on with the same, remove it to start anew, or name another file"
            )

        for name, value in settings.items():
            if before.get(name, value) != value:
                raise refuse(f"was made with {name} {before[name]}, got {value}")
        if missing := stateful.keys() - state.keys():
            raise refuse(f"was made without {', '.join(sorted(missing))}")
        if left_over := [name for name in state.keys() - stateful.keys() - of_run if state[name]]:
            raise refuse(f"was made with {', '.join(sorted(left_over))}, which is not there now")
        weights = deepcopy(run.model.state_dict())
        for name, part in stateful.items():
            try:
                part.load_state_dict(state[name])
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                run.model.load_state_dict(weights)  # what did fit was copied into it
                raise refuse(f"does not fit the {name} ({error})") from error
        run.updates, run.results = updates, results


def _finite(loss: float, name: str, epoch: int) -> float:
    if not isfinite(loss):
        raise FloatingPointError(
            f"training diverged: the {name} of epoch {epoch} is {loss}; lower the learning rate"
        )
    return loss
