"""A lock that the processes of one launch share, and that keeps other launches out."""

from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["LOCK", "Lock"]

LOCK = ".lock"
"""Name of the file."""


class Lock:
    """The lock of a folder, not taken yet; given back at the end of a block, or with the process.

    Args:
        path: The folder; it is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[Any] | None = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, *, shared: bool) -> None:
        """Take the lock, or change it.

        Args:
            shared: Whether other processes may have it as well, so long as all share it.

        Raises:
            ValueError: If a process of another launch has it, or the folder cannot be written.
        """
        try:
            if self._file is None:
                self._path.mkdir(parents=True, exist_ok=True)
                self._file = (self._path / LOCK).open("a+b")
        except OSError as error:
            raise ValueError(
                f"out {self._path} cannot be written ({error.strerror}); name another folder"
            ) from error
        try:
            import fcntl
        except ImportError:  # Windows
            return
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            # Not flock: workers that read data would keep it for a while after a kill.
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"out {self._path} is in use by another process; wait for it, or name another "
                "folder"
            ) from error
        except OSError:
            return  # a file system without locks
