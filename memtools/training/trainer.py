"""The training loop."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from memtools import seeds
from memtools.batch import LossFunction, check_targets, per_example_losses, unchecked_losses
from memtools.data import Tensors
from memtools.training.batches import Batch, batches
from memtools.training.callbacks import Callback
from memtools.training.checkpoint import load_checkpoint, save_checkpoint
from memtools.training.devices import Ranks, process_group, resolve_device
from memtools.training.evaluation import evaluate

__all__ = ["EpochResult", "Run", "Trainer"]

Precision = Literal["float32", "float64", "bfloat16", "float16"]
PLAIN_SGD = partial(SGD, lr=0.01)
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to.

    Attributes:
        epoch: Number of the epoch, from 1.
        updates: Optimiser steps so far.
        learning_rate: Learning rate of the first parameter group during the epoch.
        loss: Mean training loss over the epoch's own batches, as they were trained on.
        train_accuracy: Share of the training examples right after the epoch, in eval mode.
        validation_loss: Mean loss on the validation set, ``None`` without one.
        validation_accuracy: Share of the validation set right, ``None`` without one.
    """

    epoch: int
    updates: int
    learning_rate: float
    loss: float
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass
class Run:
    """The state of a training under way, as callbacks see it.

    Attributes:
        model: The user's module, unwrapped, on its device.
        optimizer: The optimiser that updates it.
        train: The training set, on the device if it is small.
        ranks: This process among those that train together.
        results: One entry per finished epoch.
        updates: Optimiser steps so far.
    """

    model: nn.Module
    optimizer: Optimizer
    train: Any
    ranks: Ranks
    results: list[EpochResult] = field(default_factory=list)
    updates: int = 0


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
        scheduler: Makes a learning-rate schedule from the optimiser; stepped once an epoch.
        epochs: Epochs at most.
        batch_size: Examples of an update, over all processes.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``; ``None`` is the
            cross-entropy. Their mean is minimised.
        seed: Fixes the order of the examples, dropout and noise. Not the initial weights: those
            are the model's.
        device: ``"auto"``, ``"cpu"``, ``"cuda:0"``, ...
        precision: ``"float32"``, ``"float64"``, or ``"bfloat16"``/``"float16"`` by autocast.
        stop_at_train_accuracy: Stop after the epoch that reaches this training accuracy; 1.0 is
            the paper's convergence.
        stop_when: Stop after the epoch for which this is true.
        callbacks: Called during training, see :class:`Callback`.
        checkpoint: File for the state after each epoch. If it exists, :meth:`fit` goes on from it.
        workers: Processes that load data, for sets that are no tensors.
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
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision not in ("float32", "float64", *AUTOCAST):
            raise ValueError(
                f"precision must be float32, float64, bfloat16 or float16, got {self.precision!r}"
            )

    def fit(self, train: Any, validation: Any = None) -> list[EpochResult]:
        """Train until ``epochs`` are done or a stop rule holds.

        Args:
            train: Map-style data set; items ``(input, target)`` or ``(input, target, index)``.
            validation: The same, evaluated after each epoch.

        Returns:
            One :class:`EpochResult` per epoch, those before a resume included.

        Raises:
            ValueError: If the data are empty, the batch size does not divide among the processes,
                the loss is averaged, or the checkpoint belongs to another run.
            FloatingPointError: If the training diverges.
        """
        if len(train) == 0:
            raise ValueError("train is empty; at least one example is needed")
        device = resolve_device(self.device)
        with process_group(device) as ranks, torch.random.fork_rng():
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
        run = Run(model, optimizer, train, ranks)
        stateful = {"model": model, "optimizer": optimizer, "scaler": scaler}
        if schedule:
            stateful["schedule"] = schedule
        stateful |= {f"callback {i}": callback for i, callback in enumerate(self.callbacks)}
        self._resume(run, stateful)
        wrapped = DistributedDataParallel(model) if ranks.world_size > 1 else model
        for callback in self.callbacks:
            callback.on_start(run)

        while len(run.results) < self.epochs and not self._should_stop(run):
            epoch = len(run.results) + 1
            order = torch.randperm(len(train), generator=seeds.generator(self.seed, "order", epoch))
            torch.manual_seed(seeds.derive_seed(self.seed, "noise", epoch, ranks.rank))
            learning_rate = float(optimizer.param_groups[0]["lr"])
            wrapped.train()
            total_loss = torch.zeros((), dtype=dtype, device=device)
            for batch in batches(
                train,
                order,
                self.batch_size,
                device=device,
                dtype=dtype,
                ranks=ranks,
                workers=self.workers,
                seed=seeds.derive_seed(self.seed, "loading", epoch),
            ):
                loss = self._loss(wrapped, batch, run, device)
                optimizer.zero_grad()
                # DDP averages gradients over the processes; the mean over the global batch is the
                # sum of the shares, however unequal they are.
                scaler.scale(loss * ranks.world_size).backward()
                for callback in self.callbacks:
                    callback.before_step(run, batch)
                scaler.step(optimizer)
                scaler.update()
                run.updates += 1
                total_loss += loss.detach() * batch.total
            if schedule:
                schedule.step()

            mean_loss = float(ranks.sum(total_loss)) / len(train)
            if mean_loss != mean_loss or abs(mean_loss) == float("inf"):
                raise FloatingPointError(
                    f"training diverged: the mean loss of epoch {epoch} is {mean_loss}; "
                    "lower the learning rate"
                )
            evaluation = {"loss_fn": self.loss_fn, "ranks": ranks, "workers": self.workers}
            on_train = evaluate(model, train, **evaluation)
            held_out = None if validation is None else evaluate(model, validation, **evaluation)
            result = EpochResult(
                epoch,
                run.updates,
                learning_rate,
                mean_loss,
                on_train.accuracy,
                held_out and held_out.loss,
                held_out and held_out.accuracy,
            )
            run.results.append(result)
            for callback in self.callbacks:
                callback.on_epoch_end(run, result)
            self._save(run, stateful)
        return run.results

    def _loss(self, model: nn.Module, batch: Batch, run: Run, device: torch.device) -> torch.Tensor:
        """This process's part of the mean loss over the global batch."""
        autocast = (
            torch.autocast(device.type, AUTOCAST[self.precision])
            if self.precision in AUTOCAST
            else nullcontext()
        )
        with autocast:
            logits = model(batch.inputs)
            # Looking at values makes an accelerator wait, so it is done once and not at each step.
            check = per_example_losses if run.updates == 0 else unchecked_losses
            if run.updates == 0 and self.loss_fn is None and isinstance(run.train, Tensors):
                check_targets(run.train.targets, logits.shape[1])
            losses = check(self.loss_fn, logits, batch.targets)
        return losses.sum() * (batch.counts / batch.total)

    def _should_stop(self, run: Run) -> bool:
        if not run.results:
            return False
        last = run.results[-1]
        goal = self.stop_at_train_accuracy
        return (goal is not None and last.train_accuracy >= goal) or (
            self.stop_when is not None and self.stop_when(last)
        )

    def _settings(self, run: Run) -> dict[str, Any]:
        """What a checkpoint must agree with, for the resumed run to be the same run."""
        # Loading an optimiser's state brings its old learning rate back, whatever the new one is.
        options = {k: v for k, v in run.optimizer.defaults.items() if v}
        return {
            "seed": int(self.seed),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "training examples": len(run.train),
            "optimizer": f"{type(run.optimizer).__name__} {options}",
        }

    def _save(self, run: Run, stateful: dict[str, Any]) -> None:
        if self.checkpoint is not None and run.ranks.rank == 0:
            state = {name: part.state_dict() for name, part in stateful.items()}
            state["settings"] = self._settings(run)
            state["updates"] = run.updates
            state["results"] = [asdict(result) for result in run.results]
            save_checkpoint(self.checkpoint, state)
        run.ranks.wait()

    def _resume(self, run: Run, stateful: dict[str, Any]) -> None:
        state = None if self.checkpoint is None else load_checkpoint(self.checkpoint)
        if state is None:
            return
        of_run = {"settings", "updates", "results"}
        if not isinstance(state, dict) or not of_run <= state.keys():
            raise ValueError(
                f"checkpoint {self.checkpoint} holds something else than the state of a Trainer; "
                "name another file"
            )

        def refuse(difference: str) -> ValueError:
            return ValueError(
                f"checkpoint {self.checkpoint} {difference}; "
                "go on with the same, or name another file"
            )

        for name, value in self._settings(run).items():
            before = state["settings"].get(name, value)
            if before != value:
                raise refuse(f"was made with {name} {before}, got {value}")
        if missing := stateful.keys() - state.keys():
            raise refuse(f"was made without {', '.join(sorted(missing))}")
        if left_over := [name for name in state.keys() - stateful.keys() - of_run if state[name]]:
            raise refuse(f"was made with {', '.join(sorted(left_over))}, which is not there now")
        for name, part in stateful.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise refuse(f"does not fit the {name} ({error})") from error
        run.updates = state["updates"]
        run.results = [EpochResult(**result) for result in state["results"]]
