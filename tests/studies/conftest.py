import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from memtools.report.drawing import Figure
from memtools.studies.config import Settings

KILLED = """
import os, signal, sys
from memtools import cli
synchronise, left = os.fsync, int(sys.argv[1])
def fsync(handle):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    synchronise(handle)
os.fsync = fsync
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="session")
def killed():
    """Run a command, killed at the so-many-th time that something is to be on the disk."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("needs SIGKILL")

    def run(moment: int, command: Sequence[str]) -> None:
        words = [sys.executable, "-c", KILLED, str(moment), *command]
        done = subprocess.run(words, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return run


@pytest.fixture(scope="module")
def rows(folder):
    """The lines in the run folder of the module."""
    return [
        json.loads(line)
        for path in sorted((folder / "metrics").iterdir())
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="session")
def rewrite():
    """Put other lines in the place of those of each training in a run folder."""

    def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
        for path in (folder / "metrics").iterdir():
            first = json.loads(path.read_text().splitlines()[0])
            own = [
                row
                for row in rows
                if all(row.get(k) == first.get(k) for k in ("task", "condition", "seed"))
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in own))

    return write


@pytest.fixture(scope="session")
def contents():
    """What is in a folder: the hash of each file by its path."""

    def hashes(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    return hashes


@pytest.fixture(scope="session")
def check_page():
    """Check that the page of a run needs nothing else, and has every figure and setting."""

    def check(folder: Path, figures: Sequence[Figure], config: type[Settings]) -> None:
        page = (folder / "report.html").read_text()
        links = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert links
        assert all(link.startswith("data:image/") for link in links)
        assert "://" not in re.sub(r'"data:[^"]*"', "", page)
        for figure in figures:
            assert figure.title in page
            assert (folder / "figures" / f"{figure.name}.png").stat().st_size > 0
            assert (folder / "figures" / f"{figure.name}.svg").stat().st_size > 0
        for setting in fields(config):
            assert f"<td>{setting.name}</td>" in page

    return check
