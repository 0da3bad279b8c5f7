"""A study whose files are damaged, whose disk is full, or whose folder is another's."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from memtools import cli

resource = pytest.importorskip("resource", reason="limits of a process are POSIX")

SMALL = [
    "memorization", "--train-size", "60", "--validation-size", "30", "--epochs", "2",
    "--width", "8", "--csr-examples", "8", "--csr-steps", "2", "--seeds", "0",
]  # fmt: skip


def command(out: Path, *more: str) -> list[str]:
    return ["study", *SMALL, "--out", str(out), *more]


class Done(NamedTuple):
    code: int
    lines: list[str]


def alone(out: Path, *more: str, largest_file: int | None = None) -> Done:
    """Run in a process of its own, which may write files of so many bytes only."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    words = [sys.executable, "-m", "memtools", *command(out, *more)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limit)
    return Done(done.returncode, done.stderr.splitlines())


@pytest.fixture
def run(capsys):
    def in_this_process(out: Path, *more: str) -> Done:
        code = cli.main(command(out, *more))
        return Done(code, capsys.readouterr().err.splitlines())

    return in_this_process


def results(folder: Path) -> dict[str, bytes]:
    names = ("metrics", "examples", "ledgers")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in sorted((folder / name).glob("*"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(out)) == 0
    return out


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def assert_told_in_a_line(done: Done, *words: str) -> None:
    assert done.code == 2, done.lines
    assert done.lines[-1].startswith("memtools: ")
    assert not [line for line in done.lines if "Traceback" in line]
    for word in words:
        assert word in done.lines[-1]


def damaged(folder: Path, kind: str, how: str) -> Path:
    path = next(p for p in sorted((folder / kind).glob("*")) if p.is_file())
    content = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(bytes(255 - byte for byte in content))
        case "pickle":
            path.write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04exit\x85R.")
        case "gone":
            path.unlink()
    return path


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "pickle", "gone"])
@pytest.mark.parametrize("kind", ["metrics", "examples"])
def test_a_damaged_result_is_made_again_or_named(kind, how, folder, finished, run):
    path = damaged(folder, kind, how)
    done = run(folder, "--resume")
    if done.code:
        assert_told_in_a_line(done, path.name)
        path.unlink()
        assert run(folder, "--resume").code == 0
    assert results(folder) == results(finished)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff" * 9, b"[]", b'{"settings": 3}'])
def test_a_damaged_config_is_named(content, folder, run):
    (folder / "config.json").write_bytes(content)
    before = results(folder)
    assert_told_in_a_line(run(folder, "--resume"), "config.json")
    assert results(folder) == before


@pytest.mark.parametrize("largest_file", [1_000])
def test_a_full_disk_is_told_in_a_line_and_nothing_is_lost(largest_file, finished, tmp_path):
    out = tmp_path / "run"
    done = alone(out, largest_file=largest_file)
    assert_told_in_a_line(done)
    assert not list(out.rglob("*.tmp"))
    done = alone(out, *(["--resume"] if (out / "config.json").exists() else []))
    assert done.code == 0, done.lines
    assert results(out) == results(finished)


def test_a_read_only_folder_is_named(folder, finished, frozen, run):
    frozen(folder)
    assert_told_in_a_line(run(folder, "--resume"), str(folder))
    assert results(folder) == results(finished)


def test_a_clock_that_goes_backwards_changes_nothing(folder, finished, run, monkeypatch):
    damaged(folder, "metrics", "cut")
    damaged(folder, "examples", "gone")
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (4e9 - number, 4e9 - number))  # in 2096, the last one first
    moments = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    assert run(folder, "--resume").code == 0
    assert results(folder) == results(finished)


def test_a_file_in_place_of_a_folder_is_told_in_a_line(tmp_path, run):
    (tmp_path / "file").write_text("")
    assert_told_in_a_line(run(tmp_path / "file" / "run"), "file")


def test_two_runs_in_a_folder_do_not_spoil_each_other(tmp_path, finished, run):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "memtools", *command(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:
        while not (out / "config.json").exists() and first.poll() is None:
            time.sleep(0.01)
        second = run(out, "--resume")
        printed, _ = first.communicate()
    assert first.returncode == 0, printed
    if second.code:
        assert_told_in_a_line(second, str(out))
    assert results(out) == results(finished)
