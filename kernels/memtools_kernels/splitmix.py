"""SplitMix64 (Steele et al. 2014): numbers that are random to look at, from counters."""

import torch
from torch import Tensor

__all__ = ["GOLDEN", "mix_", "shifted"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, signed: what it counts in. int64 wraps around at 2^64, like
the unsigned numbers for which it is made."""


def mix_(bits: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Its finaliser, in place: every bit comes to depend on every bit.

    Args:
        bits: int64.
        scratch: Memory of the same shape, which is written over.
    """
    scratch = torch.empty_like(bits) if scratch is None else scratch
    bits ^= shifted(bits, 30, scratch)
    bits *= 0xBF58476D1CE4E5B9 - 2**64
    bits ^= shifted(bits, 27, scratch)
    bits *= 0x94D049BB133111EB - 2**64
    bits ^= shifted(bits, 31, scratch)
    return bits


def shifted(bits: Tensor, places: int, out: Tensor | None = None, kept: int = 64) -> Tensor:
    """Bits moved down, zeros moved in; the lowest ``kept`` of them."""
    # A shift of int64 repeats the sign bit, which the mask takes away.
    mask = 2 ** min(kept, 64 - places) - 1
    return torch.bitwise_right_shift(bits, places, out=out).bitwise_and_(mask)
