"""Records a training, update by update, so that it can be gone through backwards."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memtools.batch import LossFunction, check_tensor, check_whole
from memtools.guard import is_measuring, plain, unwrap
from memtools.sensitivity.fingerprints import drew_since, fingerprint, probe_like, random_state
from memtools.sensitivity.optimizers import OptimizerReader, flat
from memtools.sensitivity.own_update import OwnUpdate, UpdateFunction
from memtools.sensitivity.storage import Snapshot, storage_at
from memtools.sensitivity.updates import WEIGHT, Rule, Slice, rule_for

__all__ = ["Step", "TrainingTape"]

Modes = tuple[bool, ...]


@dataclass(frozen=True, eq=False)  # tensors have no truth value
class Step:
    """What a tape keeps of one update.

    Attributes:
        indices: Which examples the batch held, shape ``(b,)``.
        slices: Settings of the optimiser.
        modes: Train or eval mode of each submodule.
        random: State of torch's generators before the forward pass: the CPU's, then the device's
            if it has one; ``None`` if no number was drawn.
        fingerprint: By which a replay is checked, see :func:`fingerprint`.
    """

    indices: Tensor
    slices: tuple[Slice, ...]
    modes: Modes
    random: tuple[Tensor, ...] | None
    fingerprint: Tensor


@dataclass(frozen=True)
class _Call:
    """What a forward pass of the training started from."""

    modes: Modes
    random: tuple[Tensor, ...]
    buffers: dict[str, Tensor]
    autocast: bool


class TrainingTape:
    r"""Records a training for :func:`memtools.loss_sensitivity`: one line per update.

    The training stays the same, bit for bit. Kept are, per update, the numbers of the examples and
    (before every ``every``-th) the weights and the state of the optimiser: for :math:`T` updates
    of :math:`P` weights, :math:`\lceil T / every \rceil\, P\, (1 + m)` numbers, with :math:`m = 0`
    for plain SGD, 1 with momentum, 2 for Adam and AdamW, 3 with ``amsgrad``.

    Args:
        model: The model that is trained. A hook on it notes the state from which each forward
            pass starts (random numbers of dropout, BatchNorm statistics); :meth:`close` removes it.
        optimizer: ``torch.optim``'s ``SGD``, ``Adam`` or ``AdamW``; schedules of the learning rate
            are noted. Another one needs ``update``.
        loss_fn: ``loss_fn(logits, targets)`` -> losses of shape ``(n,)``, as the training minimises
            them; ``None`` is the cross-entropy.
        reduction: How the losses of a batch join: ``"mean"`` or ``"sum"``.
        update: The optimiser's update as a differentiable function ``update(weights, gradients,
            state, settings) -> (weights, state)``. Weights and gradients are tensors by name of the
            parameter, ``state`` such dicts by the key in ``optimizer.state[p]`` (none before the
            first step, zeros for a weight that had no gradient yet), ``settings`` the options of
            the parameter's group by its name. What is done to the gradients before the optimiser's
            step (clipping, for instance) belongs in it.
        every: Keep weights before every so-many-th update, and recompute those between. About
            the square root of the number of updates needs least memory, and one more forward and
            backward pass per update. Roundings differ in that pass; where the training makes much
            of them (Adam in float32 with weights of zero gradient, such as a bias before a
            BatchNorm), the replay is refused, and a smaller number helps.
        store: Where weights are kept: ``None`` in memory beside the model, ``"cpu"`` in main
            memory, or a new folder on the disk.

    Raises:
        TypeError: If the model is no module, or the optimiser is none of those.
        ValueError: If a setting is out of range, the optimiser trains no weight of the model, or
            the weights are not of one device and one dtype, float32 or float64.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> inputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
        >>> tape = memtools.TrainingTape(model, optimizer)
        >>> for indices in torch.randperm(6).split(2):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(model(inputs[indices]), targets[indices])
        ...     loss.backward()
        ...     tape.record(indices)
        ...     optimizer.step()
        >>> memtools.loss_sensitivity(tape, (inputs, targets)).shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        loss_fn: LossFunction | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        update: UpdateFunction | None = None,
        every: int = 1,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
        self.model = unwrap(model)
        self.loss_fn = loss_fn
        self.reduction = reduction
        self.every = every
        self.steps: list[Step] = []
        self._optimizer = optimizer
        self.weights = self._trained_weights()
        first = next(iter(self.weights.values()))
        self.device, self.dtype = first.device, first.dtype
        self.rule: Rule | OwnUpdate
        if update is None:
            self.rule = rule_for(optimizer)
        else:
            shapes = tuple(p.shape for p in self.weights.values())
            self.rule = OwnUpdate(update, tuple(self.weights), shapes)
        self.storage = storage_at(store)
        self._modules = tuple(self.model.modules())
        self._first_call: _Call | None = None
        self._calls = 0
        self._is_closed = False
        self._reader = OptimizerReader(optimizer, self.weights, self.rule)
        self.probe = probe_like(sum(p.numel() for p in self.weights.values()), first)
        # torch.compile must not look into it: what it notes is not part of the computation.
        before_forward: Any = torch.compiler.disable(self._before_forward)
        self._hook = self.model.register_forward_pre_hook(before_forward)

    def __len__(self) -> int:
        """Number of recorded updates."""
        return len(self.steps)

    def spaced(self, count: int) -> list[int]:
        """Numbers of updates that are evenly spaced, the last of all included.

        Fewer evaluation times cost less: an approximation to the mean over all of them.

        Args:
            count: How many; at most all are given.

        Raises:
            ValueError: If it is below one.
        """
        if check_whole("count", count) < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        total = len(self)
        count = min(count, total)
        return [round(total * (i + 1) / count) for i in range(count)]

    def record(self, indices: Any) -> None:
        """Note an update: after ``backward()``, just before ``optimizer.step()``.

        Args:
            indices: Numbers in the data set of the examples of the batch, in its order, shape
                ``(b,)``. Where gradients of several batches are accumulated: all of them.

        Raises:
            TypeError: If ``indices`` are no tensor of numbers, array or sequence.
            ValueError: If there are no indices or gradients, the model was not called, the forward
                pass ran under autocast, processes share the training, or several forward passes
                that a replay cannot tell apart make up the update.
        """
        number = len(self) + 1
        try:
            indices = torch.as_tensor(indices).detach()
            check_tensor("indices", indices)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"indices of update {number} must be the numbers of the examples, shape (b,), got "
                f"{type(indices).__name__} ({error})"
            ) from error
        if (
            indices.ndim != 1
            or len(indices) == 0
            or indices.is_floating_point()
            or indices.is_complex()
        ):
            raise ValueError(
                f"indices of update {number} must be the numbers of the examples, shape (b,), got "
                f"shape {tuple(indices.shape)} and {indices.dtype}"
            )
        if indices.dtype == torch.bool:
            raise ValueError(
                f"indices of update {number} must be numbers, got a mask; use mask.nonzero()[:, 0]"
            )
        if _is_shared():
            raise ValueError(
                "model is trained by several processes, of which each sees its own share of the "
                "gradients only; record a training of one process"
            )
        call = self._replayable_call(number)
        gradients = {name: p.grad for name, p in self.weights.items()}
        if all(g is None for g in gradients.values()):
            raise ValueError(
                f"update {number} has no gradients; call record after backward() and before "
                "optimizer.step()"
            )
        if any(g is not None and g.layout != torch.strided for g in gradients.values()):
            raise ValueError(
                f"update {number} has sparse gradients, which cannot be replayed; use sparse=False"
            )
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            weights = flat([p.detach() for p in self.weights.values()])
            gradient = flat(
                [
                    torch.zeros_like(p) if g is None else g.detach()
                    for p, g in zip(self.weights.values(), gradients.values(), strict=True)
                ]
            )
            vectors = {WEIGHT: weights, **self._reader.vectors()}
            marks = fingerprint(vectors, gradient, call.buffers, self.probe)
            if (number - 1) % self.every == 0:
                self.storage.put(number - 1, Snapshot(vectors, call.buffers))
        last = self.steps[-1] if self.steps else None
        slices = self._reader.slices(gradients)
        # Settings and modes seldom change: one copy for all updates that share them.
        if last is not None and slices == last.slices:
            slices = last.slices
        modes = call.modes
        if last is not None and modes == last.modes:
            modes = last.modes
        random = call.random if drew_since(call.random, self.device) else None
        self.steps.append(Step(indices.clone(), slices, modes, random, marks))
        self._first_call, self._calls = None, 0

    def close(self) -> None:
        """Take the hook off the model. What was recorded stays."""
        self._hook.remove()
        self._is_closed = True

    def _trained_weights(self) -> dict[str, nn.Parameter]:
        trained = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        weights = {
            name: p
            for name, p in self.model.named_parameters()
            if id(p) in trained and p.requires_grad
        }
        if not weights:
            raise ValueError("optimizer holds no weight of the model; make it from its parameters")
        outside = trained - {id(p) for p in self.model.parameters()}
        if outside:
            raise ValueError(
                f"optimizer holds {len(outside)} weights that are not the model's; put all that is "
                "trained into one module and pass that"
            )
        kinds = {(p.device, p.dtype) for p in weights.values()}
        if len(kinds) > 1 or next(iter(kinds))[1] not in (torch.float32, torch.float64):
            raise ValueError(
                "model must have its weights on one device and in one dtype, float32 or float64, "
                f"got {', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}"
            )
        return weights

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if is_measuring() or not torch.is_grad_enabled():
            return
        modes = tuple(m.training for m in self._modules)
        if self._first_call is not None and self._first_call.modes == modes:
            self._calls += 1
            return
        if self._first_call is not None and not module.training:
            return  # an evaluation between forward pass and update
        buffers = {name: plain(b).clone() for name, b in self.model.named_buffers()}
        autocast = torch.is_autocast_enabled(self.device.type)
        self._first_call = _Call(modes, random_state(self.device), buffers, autocast)
        self._calls = 1

    def _replayable_call(self, number: int) -> _Call:
        call = self._first_call
        if self._is_closed:
            raise ValueError(f"tape is closed; update {number} belongs on a new one")
        if call is None:
            raise ValueError(
                f"model was not called, with gradients on, before update {number}; call "
                "model(inputs), not a copy, and record once per update"
            )
        if call.autocast:
            raise ValueError(
                f"update {number} was computed under autocast, whose roundings a replay does not "
                "repeat; train in float32 or float64 while recording"
            )
        if self._calls > 1:
            moved = [
                name
                for name, buffer in self.model.named_buffers()
                if not torch.equal(buffer, call.buffers[name])
            ]
            if moved or drew_since(call.random, self.device):
                what = (
                    f"changed its buffers ({', '.join(moved)})" if moved else "drew random numbers"
                )
                raise ValueError(
                    f"model was called {self._calls} times before update {number} and {what} each "
                    "time, which a replay in one forward pass cannot repeat; use one batch per "
                    "update, or switch dropout and BatchNorm off"
                )
        return call


def _is_shared() -> bool:
    """Whether this process is one of several that train together."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )
