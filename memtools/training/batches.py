"""From a data set and an order to the batches of one process."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from memtools.data import Tensors
from memtools.training.devices import Ranks

__all__ = ["Batch", "batches"]


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch.

    Attributes:
        inputs: Shape ``(n, ...)``, on the device of the model.
        targets: Shape ``(n,)``, on the device of the model.
        indices: Which examples of the data set these are, shape ``(n,)``, on the CPU.
        total: Number of examples in the global batch.
        counts: False where the share is empty: one example stands in, since every process has to
            take part in every step, and must not count.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    total: int
    counts: bool = True


def batches(
    dataset: Any,
    order: Tensor,
    batch_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    workers: int = 0,
    seed: int = 0,
) -> Iterator[Batch]:
    """Go through a data set once.

    :class:`~memtools.data.Tensors` are indexed where they are; anything else goes through a
    ``DataLoader``.

    Args:
        dataset: Map-style; items ``(input, target)`` or ``(input, target, index)``.
        order: Indices in the order of use.
        batch_size: Examples of a batch over all processes; the last one may be smaller.
        device: Where the batches are wanted.
        dtype: Dtype of inputs of floating point; ``None`` leaves it.
        ranks: This process among all.
        workers: Processes that load data.
        seed: Seed of the loading processes, for random augmentation.

    Yields:
        This process's share of each batch.
    """
    plan = []
    for indices in order.split(batch_size):
        share = ranks.share(indices)
        plan.append((share if len(share) else indices[:1], len(indices), len(share) > 0))
    for (indices, total, counts), (inputs, targets) in zip(
        plan,
        _read(dataset, [p[0] for p in plan], device, ranks, workers, seed),
        strict=True,
    ):
        wanted = dtype if inputs.is_floating_point() else None
        inputs = inputs.to(device, wanted, non_blocking=True)
        yield Batch(inputs, targets.to(device, non_blocking=True), indices, total, counts)


def _read(
    dataset: Any,
    plan: list[Tensor],
    device: torch.device,
    ranks: Ranks,
    workers: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(dataset, Tensors):
        for indices in plan:
            indices = indices.to(dataset.inputs.device)
            yield dataset.inputs[indices], dataset.targets[indices]
        return
    context = None
    if workers and ranks.world_size > 1 and "forkserver" in multiprocessing.get_all_start_methods():
        # The threads of the process group do not survive a fork: a worker would now and then hang.
        context = "forkserver"
    loader = DataLoader(
        dataset,
        multiprocessing_context=context,
        batch_sampler=[indices.tolist() for indices in plan],
        num_workers=workers,
        # Without workers, the data set itself may give tensors that are on a GPU.
        pin_memory=device.type == "cuda" and workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )
    for inputs, targets, *_ in loader:
        yield inputs, targets
