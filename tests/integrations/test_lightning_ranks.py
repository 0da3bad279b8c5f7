"""Lightning's callbacks where two processes train one model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from memtools import Ledger

pytest.importorskip("lightning", reason="lightning is not installed")
pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)

from tests.integrations.fit_in_two import EPOCHS, N  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """What both processes found, without our callbacks and with them, and the folder."""
    found = {}
    for kind in ("plain", "measured"):
        folder = tmp_path_factory.mktemp(kind)
        command = [sys.executable, "-m", "tests.integrations.fit_in_two", str(folder), kind]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[kind] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return found, folder


def test_the_training_is_the_same_to_the_last_bit(fits):
    found, _ = fits
    for plain, measured in zip(found["plain"], found["measured"], strict=True):
        assert plain["weights"] == measured["weights"]


def test_a_ledger_is_whole_in_memory_and_in_a_folder(fits):
    found, folder = fits
    in_folder = Ledger.open(folder / "ledger").presentations.tolist()
    # Two processes of 13 examples each.
    assert sum(in_folder) == 26 * EPOCHS
    assert min(in_folder) >= EPOCHS
    assert [part["in memory"] for part in found["measured"]] == [in_folder, in_folder]
    assert len(in_folder) == N
    assert len(list((folder / "ledger").glob("log-*"))) == 2


def test_both_measure_the_same_and_the_first_logs(fits):
    first, second = fits[0]["measured"]
    assert first["metrics"] == second["metrics"]
    assert "probe/gini_of_running_mean" in first["metrics"]
    assert len(first["logged"]) == EPOCHS
    assert second["logged"] == []
