"""A random stream for each example that depends on the example, and not on where it stands.

The number of a stream is made from the bytes of the example and a seed. So the noise of an example
is the same in any batch, in any order and on any rank.
"""

import torch
from torch import Tensor

__all__ = ["seed_of", "stream_keys", "uniform"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2**64 over the golden ratio, as a signed number: what SplitMix64 counts in."""

BLOCK = 2**15
"""Elements that are hashed at a time, so that a large set needs no copy of itself."""


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator; ``None`` is a new CPU generator with seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = torch.randint(
        2**62, (), generator=generator, device=generator.device, dtype=torch.int64
    )
    return int(drawn)


def stream_keys(inputs: Tensor, seed: int) -> Tensor:
    """Numbers of the streams of some examples.

    Args:
        inputs: Batch of shape ``(n, ...)`` of any dtype. Equal examples share a stream.
        seed: Any number below 2**63.

    Returns:
        int64 of shape ``(n,)``, spread over all 64 bits.
    """
    rows = max(1, BLOCK // max(1, inputs[0].numel()))
    hashes = [_hash(chunk) for chunk in inputs.split(rows)]
    return _mixed(torch.cat(hashes) + _mixed(torch.tensor(seed, device=inputs.device)))


def uniform(keys: Tensor, purpose: int) -> Tensor:
    """A number from [0, 1) for each key, float32; another one for each purpose."""
    return ((_mixed(keys ^ _mixed(torch.full_like(keys, purpose))) >> 40) & 0xFFFFFF) / 2**24


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al., 2014): every bit depends on every bit."""
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, places: int) -> Tensor:
    # Without the mask, the sign would be shifted in.
    return (z >> places) & (2 ** (64 - places) - 1)


def _hash(inputs: Tensor) -> Tensor:
    rows = inputs.reshape(len(inputs), -1) + 0  # -0.0 is 0.0, whose bytes are others
    size = rows.shape[1] * rows.itemsize
    longest = next(
        t for t in (torch.int64, torch.int32, torch.int16, torch.int8) if size % t.itemsize == 0
    )
    values = rows.contiguous().view(longest).long()
    places = torch.arange(1, values.shape[1] + 1, device=inputs.device) * GOLDEN
    return _mixed(values ^ _mixed(places)).sum(1)
