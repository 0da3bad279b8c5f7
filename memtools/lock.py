"""A lock that keeps other processes out of a folder, or other launches."""

from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["LOCK", "Lock"]

LOCK = ".lock"
"""Name of the file."""


class Lock:
    """The lock of a folder, not taken yet.

    It is given back at the end of a block, with this object, or with the process, however it ends.
    A process that is forked from one that has it does not have it.

    Args:
        path: The folder; it is made when the lock is taken.
        argument: What the folder is called in errors.
    """

    def __init__(self, path: Path, argument: str = "out") -> None:
        self._path, self._where = path, f"{argument} {path}"
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
        """Take the lock, change it, or make sure that it is still there.

        Args:
            shared: Whether other processes may have it as well, so long as all share it.

        Raises:
            ValueError: If another process has it, or the folder cannot be written.
        """
        try:
            if self._file is None:
                self._path.mkdir(parents=True, exist_ok=True)
                self._file = (self._path / LOCK).open("a+b")
        except OSError as error:
            raise ValueError(
                f"{self._where} cannot be written ({error.strerror}); name another folder"
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
                f"{self._where} is in use by another process; wait for it, or name another folder"
            ) from error
        except OSError:
            return  # a file system without locks
