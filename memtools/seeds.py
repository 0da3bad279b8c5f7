"""Independent random streams from one seed, and the state of the global ones."""

import hashlib
import operator
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomState", "derive_seed", "generator", "kept", "seeded"]


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


class RandomState:
    """State of the global random number generators: torch's on some devices, NumPy's, Python's."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._devices = sorted((d for d in devices if d.type != "cpu"), key=str)
        self._torch = self._of_torch()
        self._numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        self._python = random.getstate()

    def is_present(self) -> bool:
        """Whether no number was drawn since."""
        return (
            all(torch.equal(a, b) for a, b in zip(self._torch, self._of_torch(), strict=True))
            and random.getstate() == self._python
            and pickle.dumps(np.random.get_state(legacy=False)) == pickle.dumps(self._numpy)  # noqa: NPY002
        )

    def restore(self) -> None:
        """Make it the present state."""
        torch.set_rng_state(self._torch[0])
        for device, state in zip(self._devices, self._torch[1:], strict=True):
            module = torch.get_device_module(device)
            if device.type == "cuda":
                module.set_rng_state(state, device)
            else:
                module.set_rng_state(state)
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)

    def _of_torch(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        for device in self._devices:
            module = torch.get_device_module(device)
            of_cuda = device.type == "cuda"
            states.append(module.get_rng_state(device) if of_cuda else module.get_rng_state())
        return states
