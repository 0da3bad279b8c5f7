"""The model as a function of its weights, called as it was in training or in eval mode."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from memtools.batch import unchecked_losses
from memtools.guard import logits_of
from memtools.sensitivity.tape import Step, TrainingTape

__all__ = ["Replay"]


class Replay:
    """The losses of a batch as a function of weights, inputs and BatchNorm statistics.

    Args:
        tape: Whose model it is.
    """

    def __init__(self, tape: TrainingTape) -> None:
        self.tape = tape
        self.names = tuple(tape.weights)
        self.shapes = tuple(p.shape for p in tape.weights.values())
        self.sizes = tuple(shape.numel() for shape in self.shapes)
        self._modules = tuple(tape.model.modules())
        self._statistics = _names_of_statistics(tape.model)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The weights in a flat vector ``(P,)``, or in each of ``(K, P)``."""
        parts = vector.split(self.sizes, dim=-1)
        return [
            part.unflatten(-1, shape) if shape else part.squeeze(-1)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def statistics_in(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The running statistics among the buffers: what training changes with a derivative."""
        return {name: buffers[name] for name in self._statistics}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every submodule in eval mode."""
        with self._in_modes([False] * len(self._modules)):
            yield

    @contextmanager
    def as_in(self, step: Step) -> Iterator[None]:
        """Modes and random numbers as they were in the forward pass of an update."""
        with self._in_modes(step.modes):
            self.rewind(step)
            yield

    def rewind(self, step: Step) -> None:
        """Put torch's random state where it was before the forward pass of an update."""
        if step.random is not None:
            torch.set_rng_state(step.random[0])
            for state in step.random[1:]:
                torch.cuda.set_rng_state(state, self.tape.device)

    def updates_statistics(self, step: Step) -> bool:
        """Whether a BatchNorm was in train mode in the forward pass of an update."""
        return any(
            training and isinstance(module, nn.modules.batchnorm._BatchNorm)
            for module, training in zip(self._modules, step.modes, strict=True)
        )

    @contextmanager
    def _in_modes(self, modes: Sequence[bool]) -> Iterator[None]:
        for module, training in zip(self._modules, modes, strict=True):
            module.training = training
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel([SDPBackend.MATH]):
            yield

    def losses(
        self,
        weights: Sequence[Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of a batch, and the buffers that the forward pass leaves.

        Args:
            weights: In the order of ``names``.
            buffers: All buffers of the model by name; they stay as they are.
            inputs: Shape ``(b, ...)``.
            targets: Shape ``(b, ...)``.

        Raises:
            ValueError: If a floating-point buffer changes other than as running statistics.
        """
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        state = {**dict(zip(self.names, weights, strict=True)), **before}
        with _Statistics({n: before[n] for n in self._statistics}) as statistics:
            # A copy, since a model may work in place on its inputs.
            logits = logits_of(functional_call(self.tape.model, state, (inputs.clone(),)))
        for name, buffer in before.items():
            if buffer._version and buffer.is_floating_point():
                raise ValueError(
                    f"model changes its buffer {name!r} in training by an operation whose "
                    "derivative is unknown, so that the sensitivity would lack a part; BatchNorm's "
                    "statistics are the only ones that can be followed"
                )
        losses = unchecked_losses(self.tape.loss_fn, logits, targets)
        return losses, before | statistics.after

    def joined(self, losses: Tensor) -> Tensor:
        """The loss of the batch, from those of its examples."""
        return losses.mean() if self.tape.reduction == "mean" else losses.sum()


class _Statistics(TorchFunctionMode):
    """Updates BatchNorm's running statistics out of place, so that a gradient goes through.

    Attributes:
        after: Those that were updated, by name.
    """

    def __init__(self, statistics: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(buffer): name for name, buffer in statistics.items()}
        self.after: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.batch_norm or not self._names:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        names = (self._names.get(id(running_mean)), self._names.get(id(running_var)))
        if running_mean is None or running_var is None or names[0] is None or names[1] is None:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        # An earlier call in the same forward pass may have left newer statistics.
        mean = self.after.get(names[0], running_mean)
        var = self.after.get(names[1], running_var)
        if not training:
            # PyTorch's own has no derivative with respect to the statistics.
            shape = (1, -1, *(1,) * (input.ndim - 2))
            normal = (input - mean.view(shape)) / (var + eps).sqrt().view(shape)
            normal = normal if weight is None else normal * weight.view(shape)
            return normal if bias is None else normal + bias.view(shape)
        others = [d for d in range(input.ndim) if d != 1]
        new_mean, new_var = input.mean(others), input.var(others, correction=1)
        self.after[names[0]] = (1 - momentum) * mean + momentum * new_mean
        self.after[names[1]] = (1 - momentum) * var + momentum * new_var
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)


def _names_of_statistics(model: nn.Module) -> list[str]:
    buffers = {id(b): name for name, b in model.named_buffers()}
    return [
        buffers[id(statistic)]
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None and id(statistic) in buffers
    ]
