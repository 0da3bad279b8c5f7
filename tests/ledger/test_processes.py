"""A ledger that several processes write together is that of one process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import distributed

from memtools import Ledger
from tests.ledger.ranks import N, parts, values

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="needs torch.distributed with gloo",
)


def launch(size, folder, begin, end, checkpoint=0):
    numbers = [str(x) for x in (size, folder, begin, end, checkpoint)]
    command = [sys.executable, "-m", "tests.ledger.ranks", *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def alone(end):
    ledger = Ledger(N)
    for step in range(end):
        (index,) = parts(1, step)
        ledger.update(index, step=step, **values(step, index))
    return ledger


def assert_same(found, expected):
    assert set(found.columns) == set(expected.columns)
    for name in expected.columns:
        np.testing.assert_array_equal(found.history(name), expected.history(name))
    for name, column in expected.scores().items():
        np.testing.assert_array_equal(found.scores()[name], column)


@pytest.mark.parametrize("size", [2, 3])
def test_histories_are_in_the_order_of_the_steps(size, tmp_path):
    launch(size, tmp_path / "ledger", 0, 6)
    assert_same(Ledger.open(tmp_path / "ledger"), alone(6))


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (3, 1)])
def test_another_number_of_processes_goes_on_from_a_checkpoint(before, after, tmp_path):
    """What was recorded after the checkpoint is gone from the logs of all, and comes once."""
    launch(before, tmp_path / "ledger", 0, 6)
    launch(after, tmp_path / "ledger", 4, 8, checkpoint=3)
    assert_same(Ledger.open(tmp_path / "ledger"), alone(8))
