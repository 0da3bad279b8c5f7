import os
import subprocess
from pathlib import Path

import pytest


def mounted(folder: Path, *options: str) -> None:
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a file system ({done.stderr.strip()})")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB, and a function that fills it up but for some bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=128k", "tmpfs")

    def fill(*, but: int) -> None:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        (folder / "filler").write_bytes(bytes(max(0, free - but)))

    yield folder, fill
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def frozen():
    """A function that makes a folder read-only, also for root, until the end of the test."""
    mounts = []

    def freeze(folder: Path) -> None:
        if os.geteuid():
            for path in (folder, *folder.rglob("*")):
                if path.is_dir():
                    path.chmod(0o555)
            return
        mounted(folder, "--bind", str(folder))
        mounts.append(folder)
        mounted(folder, "-o", "remount,ro,bind")

    yield freeze
    for folder in mounts:
        subprocess.run(["umount", "-l", str(folder)], check=True)
