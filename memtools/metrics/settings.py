"""A fingerprint of the settings of a metric, by which metrics that measure different things differ.

The same settings have the same fingerprint in every process, also after pickling.
"""

import marshal
from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

__all__ = ["described", "fingerprint"]


def fingerprint(owner: str, settings: Mapping[str, str]) -> Tensor:
    """Sixteen bytes that tell these settings from others.

    Bytes, since torchmetrics takes two states that differ by less than a tolerance for equal.

    Args:
        owner: Name of the class of metrics.
        settings: Each setting as :func:`described`.

    Returns:
        Shape ``(16,)``, uint8.
    """
    text = repr((owner, sorted(settings.items())))
    return torch.tensor(list(blake2b(text.encode(), digest_size=16).digest()), dtype=torch.uint8)


def described(value: Any, inside: tuple[int, ...] = ()) -> str:
    """A setting as text: equal for equal settings, different for different ones.

    Args:
        value: A number, string, tensor, function, module, or a collection of them.
        inside: What is being described already, by ``id``.
    """
    if value is None or isinstance(value, bool | str | bytes):
        return repr(value)
    if isinstance(value, int | float):
        return repr(float(value))  # p=1 is p=1.0
    if hasattr(value, "tolist"):  # a tensor or an array, of which repr leaves out the middle
        return f"{tuple(value.shape)}{value.tolist()}"
    if id(value) in inside:
        return "..."
    parts = [described(part, (*inside, id(value))) for part in _parts(value)]
    return f"{_name(value)}({', '.join(parts)})"


def _name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(kind, '__module__', None)}.{kind.__qualname__}"


def _parts(value: Any) -> tuple[Any, ...]:
    """What tells a value from others of its name."""
    if isinstance(value, Mapping):
        return tuple(part for key in sorted(value, key=str) for part in (str(key), value[key]))
    if isinstance(value, tuple | list):
        return tuple(value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(described, value)))
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        # Two lambdas of one scope have one name. Version 2 has no references between its parts,
        # which would depend on what else is alive.
        code = marshal.dumps(value.__code__, 2)
        return code, value.__defaults__, value.__kwdefaults__, cells
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, type | BuiltinFunctionType):
        return ()
    return (vars(value),) if hasattr(value, "__dict__") else (repr(value),)
