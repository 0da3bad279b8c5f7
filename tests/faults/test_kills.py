"""Jobs that are killed: the benchmark at a small size, and proof that it sees what it looks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("fcntl", reason="the jobs are forked")


def test_nothing_is_lost_doubled_or_different_after_kills(tmp_path):
    words = [
        "-m",
        "bench.kills",
        "--kills",
        "4",
        "--only",
        "sweep",
        "scoring",
        "ledger",
        "ensemble",
    ]
    words = [sys.executable, *words, "--results", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = json.loads((tmp_path / "kills.json").read_text())["jobs"]
    assert jobs.keys() == {"sweep", "scoring", "ledger", "ensemble"}
    for job in jobs.values():
        assert job["differences"] == []
        assert sum(job["kills"].values()) >= 4
        assert job["operations"] > job["files"] > 0


def test_what_is_lost_doubled_or_different_is_seen(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.kills import differences

    assert differences({"a": "1"}, {"a": "1"}) == []
    assert len(differences({"a": "2", "b": "1"}, {"a": "1", "c": "1"})) == 3
