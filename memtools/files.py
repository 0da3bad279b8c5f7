"""Files that are there whole or not at all, and what strangers may have put in their place."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["naming", "read_json", "refuse_links", "replace_atomically", "write_text"]


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader, or a kill at any moment, sees the old one or the new one.

    Processes that write the same file do so one after the other. What is written is on the disk
    before it takes the old file's place, so that a loss of power leaves one of the two as well. It
    may be the old one: the folder is not synchronised, which would cost time for each small file,
    and a run that goes on from an older file loses time and no result.

    Args:
        path: The file to write or replace.

    Yields:
        The path to write to, in the same folder; it is moved into place when the block ends and
        removed when it raises.
    """
    path = Path(path)
    # One fixed name, so that what a killed process leaves behind is overwritten by the next.
    temporary = path.with_name(f".{path.name}.tmp")
    with _alone(temporary):
        try:
            with naming(path):
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system say which file it is about; on a full disk it does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON, or nested without end.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def refuse_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, which a stranger may have put there.

    Raises:
        ValueError: If there is one; it is named.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"{path} is a link that leads out of its folder; put what it leads to in its "
                    "place, or name another folder"
                )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Have a file that no other process writes, for a block."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(path, handle):  # whoever had it before may have moved it into place
                yield
                return
        finally:
            with suppress(OSError):
                # For a process that was forked meanwhile, and holds the same handle.
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
