"""How far a model's numbers may be from the real numbers that they stand for.

Of an operator in a dtype with unit roundoff u (2^-24 in float32, 2^-53 in float64) is assumed:

- A sum of k products is off by at most ``k u / (1 - k u)`` times the sum of their absolute values.
  This holds for any order, with or without fused multiply-adds; but not for convolutions by
  Winograd's or Fourier's algorithm nor for products in TF32 or bfloat16, which are refused.
- A function of one number (tanh, exp, ...) is off by at most 64 u, relative to the size that its
  rule names. The worst that was measured for PyTorch's on a CPU in float32 is 6.4 u, for gelu, and
  its vectorised exp promises 20 u.
- Any operator may take numbers below the smallest normal one for zero. Those that only move or
  compare numbers may give zero for such a one as well, which the rules of the others allow for.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["FUNCTION", "Roundoff", "UnsupportedError", "refuse_inexact_products"]

FUNCTION = 64  # roundings that a function of one number counts for


class UnsupportedError(Exception):
    """There is no rule for what an operator is asked to do."""


@dataclass(frozen=True)
class Roundoff:
    """How far results in a dtype are from the real numbers that they stand for.

    Attributes:
        dtype: float32 or float64.
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(f"computes in {self.dtype}, and not in float32 or float64")

    def of(self, count: int) -> float:
        """Relative error after ``count`` roundings, the model's and those of bounds together."""
        # Bounds are rounded more often: as a centre, as a radius, and where the two are added.
        return _gamma(count, self.dtype) + _gamma(4 * count + 16, torch.float64)

    @property
    def floor(self) -> float:
        """What is added to every size, so that relative errors cover underflow: sqrt(tiny / u).

        For a product xy, u floor |y| is more than what is lost where an x below tiny is taken for
        zero, and u floor² is the tiny that is lost where xy is.
        """
        info = torch.finfo(self.dtype)
        return math.sqrt(info.tiny / (info.eps / 2))

    @property
    def limit(self) -> float:
        """The largest number of which it is sure that nothing on the way to it overflows."""
        return math.sqrt(torch.finfo(self.dtype).max)


def _gamma(count: int, dtype: torch.dtype) -> float:
    share = count * torch.finfo(dtype).eps / 2
    return share / (1 - share) if share < 1 else math.inf


def refuse_inexact_products(rounding: Roundoff, device: torch.device, kind: str) -> None:
    """Raise where sums of products may be further off than :meth:`Roundoff.of` says."""
    backends: Any = torch.backends
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"runs on {device.type}, whose rounding is not known; use the CPU")
    if device.type == "cuda" and kind == "conv":
        if backends.cudnn.enabled:
            raise UnsupportedError(
                "runs in cuDNN, whose Winograd and FFT algorithms round by more than can be told; "
                "set torch.backends.cudnn.enabled = False, or use the CPU"
            )
        kind = "matmul"  # which it then becomes
    if rounding.dtype != torch.float32:
        return
    library = backends.cuda if device.type == "cuda" else backends.mkldnn
    precision = getattr(library, kind).fp32_precision
    for name in ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"):
        if os.environ.get(name, "STRICT").upper() != "STRICT":
            precision = f"{name}={os.environ[name]}"
    if precision not in ("none", "ieee"):
        raise UnsupportedError(
            f'rounds float32 to {precision} in products; set torch.backends.fp32_precision = "ieee"'
        )
    if kind == "conv" and not (backends.mkldnn.is_available() and backends.mkldnn.enabled):
        raise UnsupportedError(
            "runs without oneDNN, and so maybe in NNPACK, whose Winograd and FFT algorithms round "
            "by more than can be told; set torch.backends.mkldnn.enabled = True, or use float64"
        )
