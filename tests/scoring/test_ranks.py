"""One process, two and three write the same files, also where others have begun."""

import json
import shutil
import subprocess
import sys

import pytest
from torch import distributed

from memtools.scoring import read
from tests.scoring import factories
from tests.scoring.ranks import CHUNK_SIZES

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="torch was built without distributed training over gloo",
)

BEGUN = (0, 1, 2, 4, 7)
"""Chunks that another launch has written before."""


def torchrun(processes, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module", params=[2, 3])
def outcome(request, tmp_path_factory, undisturbed):
    """The folder of a launch of several processes, and what each of them did."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(undisturbed(4), folder / "begun")
    for file in (folder / "begun").glob("*.parquet"):
        if int(file.stem.split("-")[1]) not in BEGUN:
            file.unlink()
    shutil.copytree(undisturbed(4), folder / "other")
    torchrun(request.param, "tests.scoring.ranks", folder)
    reports = [
        json.loads((folder / f"{request.param}-{rank}.json").read_text())
        for rank in range(request.param)
    ]
    return folder, reports


@pytest.mark.parametrize("name", ["begun", "uneven", "fewer"])
def test_any_number_of_processes_writes_the_same(name, outcome, undisturbed, contents):
    folder, _ = outcome
    assert contents(folder / name) == contents(undisturbed(CHUNK_SIZES[name]))
    assert read(folder / name)["index"].tolist() == list(range(factories.SIZE))


def test_missing_chunks_are_shared_in_turn_and_done_once(outcome):
    _, reports = outcome
    shares = {
        name: [report[name][0] for report in reports] for name in ("begun", "uneven", "fewer")
    }
    if len(reports) == 2:
        assert shares == {"begun": [4, 4], "uneven": [4, 3], "fewer": [1, 1]}
    else:
        assert shares == {"begun": [3, 3, 2], "uneven": [3, 2, 2], "fewer": [1, 1, 0]}
    for name, done in {"begun": 30, "uneven": 50, "fewer": 50}.items():
        assert sum(report[name][1] for report in reports) == done


def test_other_settings_are_refused_by_all_processes(outcome):
    _, (first, *others) = outcome
    assert "chunk_size 4, got 7" in first["other"]
    for report in others:
        assert "the first process says why" in report["other"]


def test_torchrun_of_the_command_with_one_process(undisturbed, contents, tmp_path):
    words = ["--model", "tests.scoring.factories:model", "--data", "tests.scoring.factories:data"]
    words += [
        "--radius",
        str(factories.RADIUS),
        "--method",
        "auto",
        "--batch-size",
        "2",
        "--chunk-size",
        "4",
    ]
    done = torchrun(1, "memtools", "score", *words, "--out", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(undisturbed(4))
    assert "13 of 13 chunks" in done.stderr
