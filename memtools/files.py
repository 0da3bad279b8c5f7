"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replace_atomically", "write_text"]


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that a reader, or a kill at any moment, sees the old one or the new one.

    Args:
        path: The file to write or replace.

    Yields:
        The path to write to, in the same folder; it is moved into place when the block ends and
        removed when it raises.
    """
    path = Path(path)
    # One fixed name, so that what a killed process leaves behind is overwritten by the next.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
