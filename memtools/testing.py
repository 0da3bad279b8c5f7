"""For users' tests: any code around a model, and whether it left a trace."""

import pickle
import random
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["assert_untouched"]

STRUCTURE = {"_parameters", "_buffers", "_modules", "training"}
"""Attributes of a module that are looked at under names of their own."""


@contextmanager
def assert_untouched(model: nn.Module, /, **tensors: Tensor) -> Iterator[None]:
    """Fail if a block changes a model, tensors, or the global state of torch, NumPy or Python.

    Looked at are, to the last bit: weights, buffers, every ``.grad``; ``requires_grad``; the
    train/eval flag of each submodule; hooks on modules, weights and gradients; what attributes of
    modules refer to, and what lists, sets and dicts among them hold; the random state of torch (on
    the CPU and all GPUs in use), NumPy and Python; gradient, inference and anomaly mode,
    determinism, and autocast. A tensor that was written to counts as changed also if it got the
    same values, since autograd then refuses a backward pass that is under way.

    If the block raises, its exception is what comes out, with a note on what had changed.

    Extra memory: a copy of the weights, buffers and gradients, and of ``tensors``.

    Args:
        model: Any module, also compiled or wrapped for data parallelism.
        **tensors: Tensors that the block must not change either, by the name to call them.

    Yields:
        Nothing.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``, or one of ``tensors`` is no tensor.
        AssertionError: If something changed; the message names all that did.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout())
        >>> with assert_untouched(model):
        ...     model.eval()
        Traceback (most recent call last):
        AssertionError: 3 things changed in the block:
            train/eval flag of the model was True, is False
            train/eval flag of '0' was True, is False
            train/eval flag of '1' was True, is False
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(tensor).__name__}; leave it out, or pass the "
                "tensors that it holds"
            )
    before = {**_state_of(model, tensors), **_global_state()}
    try:
        yield
    except BaseException as error:
        changes = _differences(before, {**_state_of(model, tensors), **_global_state()})
        if changes:
            error.add_note(_message(changes))
        raise
    changes = _differences(before, {**_state_of(model, tensors), **_global_state()})
    if changes:
        raise AssertionError(_message(changes))


@dataclass(frozen=True)
class _Value:
    """A tensor as it was: which one, how often it was written to, its bits."""

    tensor: Tensor
    version: int | None
    bits: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_Value":
        # An inference tensor has no counter, one on the device "meta" no values.
        version = None if tensor.is_inference() else tensor._version
        return cls(tensor, version, None if tensor.is_meta else _bits(tensor))

    def change(self, now: "_Value") -> str | None:
        if self.tensor is not now.tensor:
            return "is another tensor"
        if (self.bits is None) != (now.bits is None):
            return "has other values"
        if self.bits is not None and now.bits is not None and not torch.equal(self.bits, now.bits):
            return "has other values"
        if self.version != now.version:
            return "was written to, with the values that it had"
        return None


@dataclass(frozen=True)
class _Reference:
    """An object, and what it holds if it is a list, a set or a dict."""

    value: Any
    held: tuple[Any, ...] | None

    @classmethod
    def of(cls, value: Any) -> "_Reference":
        if isinstance(value, dict):
            return cls(value, tuple(part for item in value.items() for part in item))
        return cls(value, tuple(value) if isinstance(value, list | set) else None)

    def change(self, now: "_Reference") -> str | None:
        if not _is_same(self.value, now.value):
            return "is another object"
        if self.held is None or now.held is None:
            return None
        pairs = zip(self.held, now.held, strict=False)
        if len(self.held) != len(now.held) or not all(_is_same(a, b) for a, b in pairs):
            return "holds other objects"
        return None


@dataclass(frozen=True)
class _Setting:
    """Something plain that can be shown."""

    value: Hashable
    is_shown: bool = True

    def change(self, now: "_Setting") -> str | None:
        if self.value == now.value:
            return None
        return f"was {self.value}, is {now.value}" if self.is_shown else "is another one"


_Known = _Value | _Reference | _Setting


def _is_same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_is_same(x, y) for x, y in zip(a, b, strict=True))
    # Numbers and words may be other objects and still the same.
    return isinstance(a, int | float | str) and a == b


def _differences(before: Mapping[str, _Known], now: Mapping[str, _Known]) -> list[str]:
    found = []
    for name, value in before.items():
        if name not in now:
            found.append(f"{name} is gone")
        elif type(value) is not type(now[name]):
            found.append(f"{name} is another object")
        else:
            change = value.change(now[name])  # type: ignore[arg-type]
            if change is not None:
                found.append(f"{name} {change}")
    # A GPU that the block was the first to use had no random state before.
    new = [name for name in now if name not in before and not name.startswith("random state")]
    return found + [f"{name} is new" for name in new]


def _message(changes: list[str]) -> str:
    things = "1 thing" if len(changes) == 1 else f"{len(changes)} things"
    return "\n    ".join([f"{things} changed in the block:", *changes])


def _state_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, _Known]:
    state: dict[str, _Known] = {}
    for place, module in model.named_modules():
        where = repr(place) if place else "the model"
        state[f"submodule {where}"] = _Reference(module, None)
        state[f"train/eval flag of {where}"] = _Setting(module.training)
        prefix = f"{place}." if place else ""
        for kind, members in (("weight", module._parameters), ("buffer", module._buffers)):
            for key, tensor in members.items():
                if tensor is not None:
                    state |= _state_of_tensor(f"{kind} {prefix + key!r}", tensor)
        for key, value in vars(module).items():
            if key in STRUCTURE:
                continue
            if key.endswith("_hooks"):
                state[f"hooks of {where} ({key})"] = _Reference.of(value)
            elif isinstance(value, Tensor):
                state[f"attribute {prefix + key!r}"] = _Value.of(value)
            else:
                state[f"attribute {prefix + key!r}"] = _Reference.of(value)
    for name, tensor in tensors.items():
        state |= _state_of_tensor(f"tensor {name!r}", tensor)
    return state


def _state_of_tensor(name: str, tensor: Tensor) -> dict[str, _Known]:
    state: dict[str, _Known] = {
        name: _Value.of(tensor),
        f"requires_grad of {name}": _Setting(tensor.requires_grad),
    }
    # Of others there is none, and asking for it warns.
    if (tensor.is_leaf or tensor.retains_grad) and tensor.grad is not None:
        state[f".grad of {name}"] = _Value.of(tensor.grad)
    for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        hooks = getattr(tensor, key, None) or {}
        state[f"hooks of {name} ({key})"] = _Reference(None, tuple(hooks.values()))
    return state


def _global_state() -> dict[str, _Known]:
    state: dict[str, _Known] = {
        "random state of NumPy": _Setting(pickle.dumps(np.random.get_state(legacy=False)), False),  # noqa: NPY002
        "random state of Python": _Setting(random.getstate(), False),
        "gradient mode": _Setting(torch.is_grad_enabled()),
        "inference mode": _Setting(torch.is_inference_mode_enabled()),
        "anomaly mode": _Setting(torch.is_anomaly_enabled()),
        "deterministic algorithms": _Setting(torch.are_deterministic_algorithms_enabled()),
        "cache of autocast": _Setting(torch.is_autocast_cache_enabled()),
    }
    accelerator = torch.accelerator.current_accelerator()
    for device in ("cpu", *([] if accelerator is None else [accelerator.type])):
        state[f"autocast on {device}"] = _Setting(torch.is_autocast_enabled(device))
        state[f"dtype of autocast on {device}"] = _Setting(torch.get_autocast_dtype(device))
    generators = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for number, numbers in enumerate(torch.cuda.get_rng_state_all()):
            generators[f"torch on GPU {number}"] = numbers
    for name, numbers in generators.items():
        state[f"random state of {name}"] = _Setting(numbers.numpy().tobytes(), False)
    return state


def _bits(tensor: Tensor) -> Tensor:
    """A copy by which NaN equals itself, and 0 differs from -0."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return tensor.flatten().view(torch.uint8)
