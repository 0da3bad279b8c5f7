"""In which order the examples of a member come."""

import torch
from torch import Tensor

from memtools import seeds
from memtools.training.ensemble.member import Settings

__all__ = ["batch_sizes", "epoch_order"]


def epoch_order(seed: int, n: int, epoch: int, settings: Settings) -> Tensor:
    """Indices of the examples of an epoch, in the order of use, on the CPU.

    An epoch of the training set is one permutation, the ``Trainer``'s. An epoch of so many updates
    is a piece of the stream of permutations ``1, 2, ...``, each with a random stream of its own: a
    batch may take the end of one and the beginning of the next.
    """
    if settings.updates_per_epoch is None:
        return torch.randperm(n, generator=seeds.generator(seed, "order", epoch))
    examples = settings.updates_per_epoch * min(settings.batch_size, n)
    first, last = (epoch - 1) * examples, epoch * examples
    passes = [
        torch.randperm(n, generator=seeds.generator(seed, "pass", number + 1))
        for number in range(first // n, -(-last // n))
    ]
    skipped = first % n
    return torch.cat(passes)[skipped : skipped + examples]


def batch_sizes(n: int, settings: Settings) -> list[int]:
    """Examples of each update of an epoch."""
    if settings.updates_per_epoch is not None:
        return [min(settings.batch_size, n)] * settings.updates_per_epoch
    full, rest = divmod(n, settings.batch_size)
    return [settings.batch_size] * full + [rest] * (rest > 0)
