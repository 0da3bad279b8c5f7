"""Which device to train on, and in which company."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Ranks", "process_group", "resolve_device"]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name, if this machine has it.

    Args:
        device: ``"auto"`` takes the accelerator if there is one, the CPU otherwise. Without a
            number, each process of ``torchrun`` takes the accelerator of its local rank.

    Returns:
        The device.

    Raises:
        ValueError: If the name is unknown or there is no such device.
    """
    if str(device) == "auto":
        if not torch.accelerator.is_available():
            return torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None
        return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()  # fails on "meta" as well
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu"]
        if torch.accelerator.is_available():
            accelerator = torch.accelerator.current_accelerator()
            assert accelerator is not None
            available += [
                f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())
            ]
        raise ValueError(
            f"device must be one of auto, {', '.join(available)} on this machine, "
            f"got {str(device)!r}"
        ) from error
    if resolved.index is None and resolved.type != "cpu":
        return torch.device(resolved.type, int(os.environ.get("LOCAL_RANK", 0)))
    return resolved


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1

    def share(self, indices: Tensor) -> Tensor:
        """The part of a batch that this process computes; it may be empty."""
        return indices.tensor_split(self.world_size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, on the CPU."""
        if self.world_size > 1:
            values = values.cuda() if dist.get_backend() == "nccl" else values.cpu()
            dist.all_reduce(values)
        return values.cpu()

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world_size > 1:
            dist.barrier()


_groups = count()


@cache
def _meeting_place() -> tuple[Any, int, int]:
    """Store, rank and number of processes; one for all groups, since a process may host it."""
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    return next(rendezvous("env://"))


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, or this one alone.

    A process group that is there already is used and left as it is.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= set(os.environ)
    created = launched and dist.is_available() and not dist.is_initialized()
    if created:
        store, rank, world_size = _meeting_place()
        # A second group in the same place would read the addresses of the first.
        store = dist.PrefixStore(f"memtools {next(_groups)}", store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        # NCCL's collectives, and `.cuda()`, go to the current device.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if dist.is_available() and dist.is_initialized():
                yield Ranks(dist.get_rank(), dist.get_world_size())
            else:
                yield Ranks()
    except BaseException as error:
        if created:
            # The traceback keeps the DDP wrapper alive. Freed after the group, it would now and
            # then wait for ever for a thread of gloo that waits for it.
            traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if created:
            dist.destroy_process_group()
