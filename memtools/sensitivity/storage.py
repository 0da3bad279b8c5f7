"""Where a tape keeps the weights: in memory, or in files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from memtools.files import replace_atomically
from memtools.sensitivity.updates import Vectors

__all__ = ["Snapshot", "Storage", "storage_at"]

BUFFER = "buffer."


@dataclass(frozen=True)
class Snapshot:
    """Everything that an update starts from.

    Attributes:
        vectors: Weights and state of the optimiser, each of shape ``(P,)``.
        buffers: Buffers of the model by name, as they were before the forward pass.
    """

    vectors: Vectors
    buffers: dict[str, Tensor]


class Storage:
    """Snapshots in memory, by number of updates.

    Args:
        device: Where they are kept; ``None`` leaves them where they are.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._snapshots: dict[int, Snapshot] = {}

    def put(self, updates: int, snapshot: Snapshot) -> None:
        """Keep a snapshot."""
        self._snapshots[updates] = _moved(snapshot, self._device)

    def get(self, updates: int, device: torch.device) -> Snapshot:
        """A snapshot, on a device."""
        return _moved(self._snapshots[updates], device)


class FileStorage(Storage):
    """Snapshots in a folder, one ``.npz`` each, without pickle.

    Args:
        folder: Made if it is not there.

    Raises:
        ValueError: If it holds snapshots already.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("update-*.npz")):
            raise ValueError(f"store {folder} holds a tape already; name another folder")
        self._folder = folder

    def put(self, updates: int, snapshot: Snapshot) -> None:
        """Write a snapshot, whole or not at all."""
        arrays = dict(snapshot.vectors)
        arrays |= {BUFFER + name: buffer for name, buffer in snapshot.buffers.items()}
        with replace_atomically(self._path(updates)) as temporary, temporary.open("wb") as file:
            found: dict[str, Any] = {n: tensor.cpu().numpy() for n, tensor in arrays.items()}
            np.savez(file, **found)

    def get(self, updates: int, device: torch.device) -> Snapshot:
        """Read a snapshot."""
        path = self._path(updates)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tensors = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"store {path} cannot be read ({error}); update {updates + 1} cannot be replayed, "
                "record the training again"
            ) from error
        of_model = {n: t for n, t in tensors.items() if n.startswith(BUFFER)}
        return Snapshot(
            {name: tensor for name, tensor in tensors.items() if name not in of_model},
            {name.removeprefix(BUFFER): tensor for name, tensor in of_model.items()},
        )

    def _path(self, updates: int) -> Path:
        return self._folder / f"update-{updates:07d}.npz"


def storage_at(store: str | os.PathLike[str] | None) -> Storage:
    """A storage for ``None`` (memory, same device), ``"cpu"``, or a folder.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(store, str | os.PathLike | None):
        raise TypeError(f'store must be None, "cpu" or a folder, got {store!r}')
    if store is None:
        return Storage()
    return Storage(torch.device("cpu")) if store == "cpu" else FileStorage(Path(store))


def _moved(snapshot: Snapshot, device: torch.device | None) -> Snapshot:
    if device is None:
        return snapshot
    return Snapshot(
        {name: vector.to(device) for name, vector in snapshot.vectors.items()},
        {name: buffer.to(device) for name, buffer in snapshot.buffers.items()},
    )
