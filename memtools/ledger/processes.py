"""Which process of a distributed training this is, and what its log is called."""

import os

from torch import distributed

__all__ = ["name_of_log", "rank", "world_size"]


def rank() -> int:
    """Number of this process, from 0; that of ``torchrun`` where there is no process group."""
    return distributed.get_rank() if _is_distributed() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    if _is_distributed():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def name_of_log(rank: int) -> str:
    """Name of the folder of a process's log; in the order of the processes."""
    return f"log-{rank:06}"


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
