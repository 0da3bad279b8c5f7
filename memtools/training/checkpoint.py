"""State files that survive a kill at any moment and run no code when they are read."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from memtools.files import replace_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Args:
        path: The file to write or replace; its folder is made.
        state: Tensors, numbers, strings, and lists or dicts of them; it is copied in memory.

    Raises:
        OSError: If the file cannot be written, on a full disk for instance.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # On a full disk, PyTorch's own writer of files gives no OSError but a RuntimeError of its zip.
    content = io.BytesIO()
    torch.save(state, content)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a state onto the CPU, with ``weights_only=True``.

    Args:
        path: The file to read.

    Returns:
        The state, or ``None`` where there is no file.

    Raises:
        ValueError: If the file is no checkpoint of memtools.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip reader and unpickler meet
        raise ValueError(
            f"{path} is no checkpoint that can be read ({type(error).__name__}); "
            "remove it to start anew"
        ) from error
