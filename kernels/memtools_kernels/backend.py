"""What all operators share: Triton where there is one, and the types that they take."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

__all__ = [
    "DTYPES",
    "HAS_TRITON",
    "INTERPRET",
    "accumulator",
    "ends_in_reference",
    "jit",
    "precision",
    "without_autocast",
]

HAS_TRITON = find_spec("triton") is not None  # there is none for macOS and Windows
if HAS_TRITON or TYPE_CHECKING:
    # Triton is about to change its default for fused multiply-add; results should not change.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from triton import jit, knobs
else:

    def jit(function: Any) -> Any:
        """Leave a kernel as it is: defined, but never launched."""
        return function


# With TRITON_INTERPRET=1 in the environment, Triton runs kernels on CPU tensors.
INTERPRET = HAS_TRITON and knobs.runtime.interpret

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in for tensors of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ends_in_reference(*tensors: Tensor | None) -> bool:
    """Whether PyTorch's dispatcher would do nothing but call the reference, on the CPU.

    The detour takes 15 to 70 microseconds, on small inputs longer than the reference itself. Where
    autograd, a transform, a mode or the compiler is to see one operator, it is no detour.
    """
    return (
        not INTERPRET
        and not torch.compiler.is_compiling()
        and peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(t is None or _is_plain(t) for t in tensors)
    )


def _is_plain(tensor: Tensor) -> bool:
    is_known = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    # A view that is to be negated has other numbers in memory, which NumPy would see.
    return (
        is_known and not tensor.is_neg() and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def precision(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """How a kernel multiplies matrices of a type: as PyTorch would."""
    # The interpreter computes wrongly in bfloat16.
    how: dict[str, Any] = {"PRECISION": "ieee", "UPCAST": INTERPRET}
    if dtype == torch.float32 and device.type == "cuda" and torch.version.hip is None:
        fast = torch.get_float32_matmul_precision() != "highest"
        how["PRECISION"] = "tf32" if fast else "ieee"
    return how


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which no product of matrices is rounded to half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
