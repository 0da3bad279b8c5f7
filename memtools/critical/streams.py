"""A random stream for each example that depends on the example, and not on where it stands.

The number of a stream is made from the bytes of the example and a seed. So the noise of an example
is the same in any batch, in any order and on any rank.
"""

import torch
from memtools_kernels.splitmix import GOLDEN, mix_, shifted
from torch import Tensor

__all__ = ["checked", "seed_of", "stream_keys", "uniform"]

BLOCK = 2**15
"""Elements that are hashed at a time, so that a large set needs no copy of itself."""


def seed_of(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator; ``None`` is a new CPU generator with seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else checked(generator)
    drawn = torch.randint(
        2**62, (), generator=generator, device=generator.device, dtype=torch.int64
    )
    return int(drawn)


def checked(generator: torch.Generator) -> torch.Generator:
    """The generator.

    Raises:
        TypeError: If it is none, but a seed, for instance.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {type(generator).__name__}; a seed becomes "
            "one by torch.Generator().manual_seed(seed)"
        )
    return generator


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
    return mix_(torch.cat(hashes) + mix_(torch.tensor(seed, device=inputs.device)))


def uniform(keys: Tensor, purpose: int) -> Tensor:
    """A number from [0, 1) for each key, float32; another one for each purpose."""
    return shifted(mix_(keys ^ mix_(torch.full_like(keys, purpose))), 40) / 2**24


def _hash(inputs: Tensor) -> Tensor:
    rows = inputs.reshape(len(inputs), -1) + 0  # -0.0 is 0.0, whose bytes are others
    size = rows.shape[1] * rows.itemsize
    longest = next(
        t for t in (torch.int64, torch.int32, torch.int16, torch.int8) if size % t.itemsize == 0
    )
    values = rows.contiguous().view(longest).long()
    places = torch.arange(1, values.shape[1] + 1, device=inputs.device) * GOLDEN
    return mix_(values ^ mix_(places)).sum(1)
