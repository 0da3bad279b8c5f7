"""Numbers by which a replay is told from another training, and the state of random numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from memtools.sensitivity.updates import WEIGHT, Vectors

__all__ = [
    "drew_since",
    "fingerprint",
    "probe_like",
    "random_state",
    "size_of",
    "state_of",
    "weights_of",
]


def probe_like(size: int, weights: Tensor) -> Tensor:
    """A fixed random vector, ``(size,)``, in the dtype and on the device of some weights."""
    # float64 first, so that the numbers are the same in every dtype and on every device.
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return numbers.to(weights.device, weights.dtype)


def fingerprint(
    vectors: Vectors, gradient: Tensor, buffers: Mapping[str, Tensor], probe: Tensor
) -> Tensor:
    """Five numbers about an update.

    Args:
        vectors: Weights and state of the optimiser before it.
        gradient: What the optimiser is given, ``(P,)``.
        buffers: Buffers of the model before the forward pass.
        probe: Of :func:`probe_like`.

    Returns:
        ``(weights . r, gradient . r, norm of the gradient, size of the buffers, state . r)``.
    """
    return torch.stack(
        [
            weights_of(vectors) @ probe,
            gradient @ probe,
            gradient.norm(),
            size_of(buffers).to(probe),
            state_of(vectors) @ probe,
        ]
    )


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """State of torch's generators: the CPU's, then the device's if it has one."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(states)


def drew_since(before: tuple[Tensor, ...], device: torch.device) -> bool:
    """Whether torch has drawn random numbers since a :func:`random_state`."""
    return not all(torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))


def weights_of(vectors: Vectors) -> Tensor:
    """The weights among the vectors that an update works on."""
    return vectors[WEIGHT]


def state_of(vectors: Vectors) -> Tensor:
    """The sum of the vectors that the optimiser keeps."""
    total = torch.zeros_like(vectors[WEIGHT])
    for name, vector in vectors.items():
        if name != WEIGHT:
            total += vector
    return total


def size_of(buffers: Mapping[str, Tensor]) -> Tensor:
    """Sum of the norms of the floating-point buffers."""
    norms = [b.double().norm() for b in buffers.values() if b.is_floating_point()]
    return torch.stack(norms).sum() if norms else torch.zeros(())
