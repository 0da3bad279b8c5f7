"""Which members can run as one: those that differ in nothing but numbers."""

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.noise import is_noise

__all__ = ["groups", "signature"]

PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, type)
OF_MODULES = frozenset(nn.Module().__dict__)


def groups(
    members: Sequence[Member], sets: Sequence[tuple[Tensor, Tensor]], settings: Settings
) -> list[list[int]]:
    """Numbers of the members, those together that can run as one.

    Args:
        members: All members.
        sets: Their inputs and targets, on the device.
        settings: What they share.
    """
    found: dict[Any, list[int]] = {}
    for number, (member, (inputs, _)) in enumerate(zip(members, sets, strict=True)):
        n = len(inputs)
        # With so many updates an epoch, only the size of the batches has to be the same.
        length = n if settings.updates_per_epoch is None else min(n, settings.batch_size)
        layout = None if inputs.is_contiguous() else inputs.stride()
        data = (length, inputs.shape[1:], inputs.dtype, layout)
        found.setdefault((signature(member.model), data), []).append(number)
    return list(found.values())


def signature(model: nn.Module) -> tuple[Any, ...]:
    """Equal for models that compute the same function of their weights, buffers and noise."""
    modules = tuple(
        (name, type(module), _attributes(module))
        for name, module in model.named_modules(remove_duplicate=False)
    )
    weights = tuple(
        (name, tuple(w.shape), w.dtype, w.requires_grad)
        for name, w in model.named_parameters(remove_duplicate=False)
    )
    buffers = tuple(
        (name, tuple(b.shape), b.dtype) for name, b in model.named_buffers(remove_duplicate=False)
    )
    return modules, weights, buffers


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    own = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
    if is_noise(module):  # every member has its own strength
        for name in ("p", "std"):
            own.pop(name, None)
    return tuple((name, _comparable(value)) for name, value in sorted(own.items()))


def _comparable(value: Any) -> Any:
    """A hashable stand-in, equal only for values that are sure to be the same."""
    if isinstance(value, PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, tuple | list):
        return (type(value).__name__, *(_comparable(v) for v in value))
    if isinstance(value, dict):
        return ("dict", *((_comparable(k), _comparable(v)) for k, v in value.items()))
    if isinstance(value, FunctionType) and value.__closure__ is None:
        return ("function", id(value.__code__), _comparable(value.__defaults__))
    return ("object", id(value))
