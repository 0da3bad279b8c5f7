"""The folder of a run: what was asked for, what came, and how to go on after a kill."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memtools.extras import require
from memtools.files import naming, read_json, refuse_links, replace_atomically, write_text

__all__ = ["Log", "RunFolder", "read_parquet", "write_parquet"]


class RunFolder:
    """A folder that a run fills, and that the same run can be resumed in.

    ``config.json`` appears first and whole; in ``metrics/`` there is a file of lines for each
    training, only ever appended to; every other file is written whole or not at all.

    Attributes:
        path: The folder.
        config: What ``config.json`` holds: the study, its settings, versions and the device.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._metrics = path / "metrics"
        self._metrics.mkdir(exist_ok=True)

    @staticmethod
    def recorded_settings(path: Path, study: str) -> dict[str, Any] | None:
        """The settings in the folder, ``None`` if no run has begun there.

        Raises:
            ValueError: If there is something else at that path, the run of another study included.
        """
        if not path.exists():
            return None
        if path.is_dir() and all(p.name.endswith(".tmp") for p in path.iterdir()):
            refuse_links(path)
            return None
        config = _config(path)
        if config["study"] != study:
            raise ValueError(
                f"out {path} holds a run of the study {config['study']}, not of {study}; name "
                "another one"
            )
        return config["settings"]

    @classmethod
    def open(cls, path: Path, study: str, settings: dict[str, Any], device: str) -> "RunFolder":
        """Begin a run in a new folder, or go on in one of the same study and settings.

        Args:
            path: The folder; parents are made as needed.
            study: Name of the study.
            settings: Every setting, as JSON takes it.
            device: The device that will be used.

        Returns:
            The folder.

        Raises:
            ValueError: If the folder holds something else.
        """
        if cls.recorded_settings(path, study) is None:
            config = {
                "study": study,
                "settings": settings,
                "versions": _versions(),
                "device": _describe(device),
            }
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text(path / "config.json", json.dumps(config, indent=2) + "\n")
            except OSError as error:
                raise ValueError(
                    f"out {path} cannot be written ({error.strerror}); name another folder"
                ) from error
        config = _config(path)
        for name, value in settings.items():
            before = config["settings"].get(name)
            if before != value and name != "download":
                raise ValueError(
                    f"out {path} holds a run with {name} {before!r}, got {value!r}; "
                    "resume with the same settings, or name another folder"
                )
        # What goes on elsewhere does not end in the same numbers, nor as the folder says.
        versions = config.get("versions")
        version_before = versions.get("torch") if isinstance(versions, dict) else None
        before = f"on {config.get('device')} with torch {version_before}"
        here = f"on {_describe(device)} with torch {torch.__version__}"
        if before != here:
            raise ValueError(
                f"out {path} was made {before}, this would go on {here}; resume it there, or name "
                "another folder"
            )
        return cls(path, config)

    def log(self, name: str) -> "Log":
        """The lines of one training."""
        return Log(self.path / "metrics" / f"{name}.jsonl")

    def rows(self) -> list[dict[str, Any]]:
        """The lines of all trainings, in the order of their names."""
        return [row for path in sorted(self._metrics.iterdir()) for row in Log(path).rows()]


class Log:
    """The lines of one training: a file of JSON objects that is only ever appended to.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Keep other processes away from the training for a block, however this process ends.

        Args:
            wait: Whether to wait where another process has it.

        Yields:
            Whether this process has it.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield True
            return
        with self.path.open("ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            yield True

    def append(self, *rows: dict[str, Any]) -> None:
        """Add lines, on the disk when this returns."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            lines.flush()
            os.fsync(lines.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All lines before the first that is torn."""
        return [row for row, _ in self._whole()]

    def cut(self, is_lost: Callable[[dict[str, Any]], bool] = lambda row: True) -> None:
        """Cut the file before the first line that is torn or lost.

        Args:
            is_lost: Whether a line is of work that a kill undid, and that will be done again.
        """
        keep = 0
        for row, end in self._whole():
            if is_lost(row):
                break
            keep = end
        if self.path.exists() and keep < self.path.stat().st_size:
            os.truncate(self.path, keep)

    def _whole(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each line that can be read, and where it ends."""
        end = 0
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.splitlines(keepends=True):
            end += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not line.endswith(b"\n") or not isinstance(row, dict):
                return
            yield row, end


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """Write a table, whole or not at all."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    with replace_atomically(path) as temporary:
        parquet.write_table(pa.table(columns), temporary, compression="zstd")


def read_parquet(path: Path) -> dict[str, list[Any]]:
    """Read a table of a finished run.

    Raises:
        ValueError: If it is damaged or gone.
    """
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        return parquet.read_table(path).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read; remove it and resume the run") from error


def _config(path: Path) -> dict[str, Any]:
    """What ``config.json`` holds, whoever has written it."""
    try:
        config = read_json(path / "config.json")
        if not isinstance(config["study"], str) or not isinstance(config["settings"], dict):
            raise TypeError("study must be a name, and settings must have names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"out {path} exists and is no run folder (no config.json that can be read); "
            "name another one"
        ) from error
    refuse_links(path)
    return config


def _versions() -> dict[str, str]:
    return {
        "memtools": version("memtools"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # importing it takes a second
        "numpy": np.__version__,
    }


def _describe(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {platform.system()})"
