"""How the processes of a launch come by their shares of a folder."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from memtools.lock import Lock
from memtools.scoring.folder import ScoreFolder
from memtools.training.devices import Ranks, process_group

__all__ = ["Share", "described", "shared_folder"]


@dataclass(frozen=True)
class Share:
    """What one process has to do.

    Attributes:
        folder: The folder.
        mine: Chunks that this process writes.
        who: What its lines on a terminal begin with.
    """

    folder: ScoreFolder
    mine: list[int]
    who: str


def described(
    settings: dict[str, Any], facts: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """What ``_about.json`` holds, all that the last bits depend on.

    Args:
        settings: What was asked for.
        facts: About the model and the data set.
        device: Of the model.

    Returns:
        As JSON takes it.
    """
    machine = platform.processor() or platform.machine()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return {
        "settings": settings,
        "facts": facts,
        "versions": {
            "memtools": version("memtools"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": f"{device.type} ({machine})",
    }


@contextmanager
def shared_folder(
    path: Path, about: dict[str, Any], resume: bool, device: torch.device
) -> Iterator[Share]:
    """Begin or go on with a folder, together with the other processes of this launch.

    They talk once, in the beginning: each chunk must be missing for all of them or for none, and
    the first to begin would else be writing while the last is still looking.

    Args:
        path: The folder.
        about: Of :func:`described`.
        resume: Whether there may be scores already.
        device: Of the model.

    Yields:
        The share of this process.

    Raises:
        ValueError: If the folder holds something else, or is in use by another launch.
    """
    # A launch that torchrun itself begins again has begun the folder before.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    size, num_examples = about["settings"]["chunk_size"], about["facts"]["num_examples"]
    with Lock(path) as lock:
        with process_group(device) as ranks:
            # A byte for each chunk, and one for whether the first process gave up.
            plan = torch.zeros(-(-num_examples // size) + 1, dtype=torch.uint8)
            failure = None
            if ranks.rank == 0:
                try:
                    plan[_prepared(path, about, resume, lock).missing()] = 1
                except (ValueError, OSError) as error:
                    plan[-1], failure = 1, error
            plan = ranks.sum(plan)
        if failure is not None:
            raise failure
        if plan[-1]:
            raise ValueError(f"out {path} cannot be used; the first process says why")
        folder = ScoreFolder.at(path)
        if folder is None:
            raise ValueError(
                f"out {path} is empty for the process of rank {ranks.rank}; name a folder that "
                "all machines share"
            )
        folder.refuse_others(about)
        lock.take(shared=True)
        missing = plan[:-1].nonzero().flatten().tolist()
        who = f"rank {ranks.rank}: " if ranks.world_size > 1 else ""
        yield Share(folder, _share(missing, ranks), who)


def _prepared(path: Path, about: dict[str, Any], resume: bool, lock: Lock) -> ScoreFolder:
    """The folder, with ``_about.json`` in it, and with no other launch in it."""
    folder = ScoreFolder.at(path)
    if folder is not None and not resume:
        raise ValueError(
            f"out {path} holds scores already; add --resume (resume=True) to go on with them, or "
            "name another folder"
        )
    if folder is not None:
        folder.refuse_others(about)
    lock.take(shared=False)
    folder = folder or ScoreFolder.begin(path, about)
    lock.take(shared=True)
    return folder


def _share(missing: list[int], ranks: Ranks) -> list[int]:
    return missing[ranks.rank :: ranks.world_size]
