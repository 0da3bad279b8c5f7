"""Two and three processes agree with one, when one of them has no example at all."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
pytestmark = [
    pytest.mark.skipif(
        not distributed.is_available() or not distributed.is_gloo_available(),
        reason="torch was built without distributed training over gloo",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What each process found, by the number of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.metrics.ranks", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {
        size: [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]
        for size in (2, 3)
    }


@pytest.fixture(scope="module")
def parts():
    import tests.metrics.ranks

    return tests.metrics.ranks.PARTS


def assert_close(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    else:
        torch.testing.assert_close(
            torch.tensor(found).double(), torch.tensor(expected).double(), equal_nan=True
        )


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_find_what_one_finds(size, outcome, parts, cases):
    for name, measure in cases.MEASURES.items():
        alone = measure.build()
        for batches in parts[size]:
            cases.updated(alone, measure, *batches)
        expected = cases.as_lists(alone.compute())
        if name == "TimeToConvergence":  # the processes step together
            expected["updates_run"] = max(len(batches) for batches in parts[size])
        for rank in outcome[size]:
            first, again = rank[name]
            assert_close(first, expected)
            assert_close(again, expected)


@pytest.mark.parametrize("size", [2, 3])
def test_an_epoch_is_that_of_all_processes(size, outcome):
    for rank in outcome[size]:
        first, second, third, refused = rank["convergence"]
        assert first["epochs"] == math.inf
        assert first["is_censored"]
        assert first["updates_run"] == 2
        assert (second["epochs"], second["updates"], second["is_censored"]) == (2, 4, False)
        assert (third["epochs"], third["epochs_run"], third["updates_run"]) == (2, 3, 6)
        assert refused.startswith("end_epoch needs a batch since the last epoch")


@pytest.mark.parametrize("size", [2, 3])
def test_different_settings_are_refused_on_every_process(size, outcome):
    for rank in outcome[size]:
        assert rank["refused"].startswith("settings must be the same in all metrics")


@pytest.mark.parametrize("size", [2, 3])
def test_a_wrapped_model_does_not_wait_for_the_others(size, outcome, cases):
    expected = cases.MEASURES["ClassSensitivity"].build()
    expected.update(cases.network(), *cases.data())
    for rank in outcome[size]:
        assert_close(rank["wrapped"], expected.compute().tolist())
