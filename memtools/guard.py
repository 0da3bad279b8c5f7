"""The one place that makes a metric call leave no trace.

Every call of a user's model goes through :func:`untouched`. What it keeps as it was, also when the
call raises: weights, ``.grad``, ``requires_grad``, buffers (BatchNorm statistics among them), the
train/eval flag of every submodule, the global random state of the CPU and of the model's devices,
gradient and inference mode, autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Forward", "untouched", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module under ``torch.compile`` and the wrappers for data parallelism.

    A metric must not call the wrappers: DDP waits for the other ranks, and a compiled module would
    recompile for each new mode.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


class Forward:
    """The model as a function of its inputs, over aliases of its weights and copies of its buffers.

    Attributes:
        model: The unwrapped module.
        parameters: Detached aliases of the weights by name; a tied weight appears once.
        trainable: Names of the weights with ``requires_grad``.
        buffers: Copies, so that what a forward pass writes into them is lost.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        self.buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        self._devices = _devices(model)
        self._random_state = _random_state(self._devices)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of shape ``(n, C)``."""
        return self.with_parameters(self.parameters, inputs)

    def with_parameters(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits under other weights than the model's own."""
        # The copy lets a model work in place on its input: a leaf that requires a gradient, or
        # the user's own tensor, must not be written to.
        output = functional_call(self.model, (parameters, self.buffers), (inputs.clone(),))
        output = getattr(output, "logits", output)  # Hugging Face models return a record
        if not isinstance(output, Tensor):
            raise ValueError(
                f"model must return a tensor of logits or a record with a field `logits`, "
                f"got {type(output).__name__}; wrap the model in one that returns its logits"
            )
        return output

    def refuse_randomness(self) -> None:
        """Raise if a forward pass so far has drawn random numbers (dropout, noise, random depth).

        Raises:
            ValueError: If it has.
        """
        now = _random_state(self._devices)
        if any(not torch.equal(a, b) for a, b in zip(self._random_state, now, strict=True)):
            active = [n for n, m in self.model.named_modules() if _is_active_dropout(m)]
            where = f" (active: {', '.join(active)})" if active else ""
            raise ValueError(
                f"model drew random numbers in its forward pass{where}, so that the result would "
                "be one random draw; switch dropout and noise off with model.eval() first"
            )


@contextmanager
def untouched(model: nn.Module, *, evaluating: bool = False) -> Iterator[Forward]:
    """Call a model with gradients on, and leave no trace in it or in the global state.

    Args:
        model: Any module, also compiled, wrapped for data parallelism, hooked or partly frozen.
        evaluating: Whether to switch every submodule to eval mode for the time of the block.

    Yields:
        The model as a function, see :class:`Forward`.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``.
        ValueError: If examples of a batch are coupled, by a BatchNorm that uses batch statistics.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    modes = [(module, module.training) for module in model.modules()]
    devices = _devices(model)
    state = _random_state(devices)
    try:
        if evaluating:
            # Not model.eval(): an overridden train() may do more than set the flag, for instance
            # merge adapters into the weights.
            for module, _ in modes:
                module.training = False
        _refuse_coupled(model)
        with torch.inference_mode(False), torch.enable_grad():
            yield Forward(model)
    finally:
        for module, training in modes:
            module.training = training
        _restore_random_state(devices, state)


def leaf(tensor: Tensor) -> Tensor:
    """A view of a user's tensor that autograd may start from; the user's own stays as it was."""
    detached = tensor.clone() if tensor.is_inference() else tensor.detach()
    return detached.requires_grad_()


def _refuse_coupled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.training:
            remedy = "call model.eval() first, or put this layer alone in eval mode"
        elif module.running_mean is None:
            remedy = "give it running statistics (track_running_stats=True) or use GroupNorm"
        else:
            continue
        raise ValueError(
            f"model couples the examples of a batch: {type(module).__name__} {name!r} normalises "
            f"by statistics of the batch, so that no example has a value of its own; {remedy}"
        )


def _is_active_dropout(module: nn.Module) -> bool:
    return module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _devices(model: nn.Module) -> list[torch.device]:
    found = {t.device for t in (*model.parameters(), *model.buffers())}
    return sorted((d for d in found if d.type != "cpu"), key=str)


def _random_state(devices: list[torch.device]) -> list[Tensor]:
    states = [torch.get_rng_state()]
    for device in devices:
        module = torch.get_device_module(device)
        states.append(
            module.get_rng_state(device) if device.type == "cuda" else module.get_rng_state()
        )
    return states


def _restore_random_state(devices: list[torch.device], states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        module = torch.get_device_module(device)
        if device.type == "cuda":
            module.set_rng_state(state, device)
        else:
            module.set_rng_state(state)
