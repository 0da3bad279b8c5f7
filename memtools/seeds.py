"""Independent random streams from one seed."""

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "generator", "kept", "seeded"]


def derive_seed(*parts: int | str) -> int:
    """A seed of its own for each purpose, for instance ``derive_seed(seed, "order", epoch)``.

    Args:
        *parts: What the stream is for; the same parts always give the same seed, whether a number
            is Python's, NumPy's or a tensor.

    Returns:
        A number below 2**63.

    Raises:
        TypeError: If a part is neither text nor a whole number.
    """
    parts = tuple(part if isinstance(part, str) else int(operator.index(part)) for part in parts)
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator at the beginning of the stream of :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@contextmanager
def kept() -> Iterator[None]:
    """Put the global random state of the CPU and of all GPUs back after a block."""
    # All devices by number: without, torch warns where there is more than one.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Run a block under a seed of its own; the global random state is put back afterwards."""
    with kept():
        torch.manual_seed(derive_seed(*parts))
        yield
