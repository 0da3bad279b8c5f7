"""The critical sample ratio of a fixed subset, alone and shared by two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import Dataset, TensorDataset

from memtools import CriticalProbe, find_critical

SIZES = [1, 2, 5, None]


def batch(n=80):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1)).double()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()


def test_is_a_search_of_its_subset(method):
    inputs, model = batch(), network()
    probe = CriticalProbe(inputs, size=30, radius=0.3, method=method)
    assert torch.equal(probe.indices, probe.indices.unique())
    assert len(probe.indices) == 30
    assert torch.equal(probe.inputs, inputs[probe.indices])
    search, expected = probe(model), find_critical(model, probe.inputs, radius=0.3, method=method)
    assert torch.equal(search.points, expected.points)
    assert search.evaluations == expected.evaluations
    assert torch.equal(probe(model).points, search.points)


def test_the_subset_is_drawn_once_by_its_seed():
    inputs = batch()
    torch.manual_seed(1)
    first = CriticalProbe(inputs, size=30, radius=0.3)
    torch.manual_seed(2)
    assert torch.equal(first.indices, CriticalProbe(inputs, size=30, radius=0.1).indices)
    assert not torch.equal(
        first.indices, CriticalProbe(inputs, size=30, seed=1, radius=0.3).indices
    )
    inputs.zero_()  # the probe has a copy
    assert first.inputs.any()


@pytest.mark.parametrize(("size", "n"), [(None, 80), (500, 80), (80, 80), (1, 1)])
def test_sizes(size, n):
    probe = CriticalProbe(batch(), size=size, radius=0.3)
    assert len(probe.indices) == len(probe.inputs) == n


class Pairs(Dataset):
    def __init__(self, wrap):
        self.inputs, self.wrap = batch(), wrap

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.wrap(self.inputs[index])


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(batch(), torch.zeros(80)),
        TensorDataset(batch()),
        Pairs(lambda x: x),
        Pairs(lambda x: [x, 3]),
        Pairs(lambda x: (x.numpy(), "label")),
    ],
)
def test_data_sets(data):
    probe = CriticalProbe(data, size=30, radius=0.3)
    assert torch.equal(probe.inputs, CriticalProbe(batch(), size=30, radius=0.3).inputs)


def test_what_cannot_be_probed():
    with pytest.raises(TypeError, match=r"radius must be given"):
        CriticalProbe(batch())
    with pytest.raises(TypeError, match=r"data must be a tensor .* map-style data set, got int"):
        CriticalProbe(3, radius=0.3)  # type: ignore[arg-type]
    for size in (0, -1):
        with pytest.raises(ValueError, match=rf"size must be at least 1 of 80 .*, got {size}"):
            CriticalProbe(batch(), size=size, radius=0.3)
    with pytest.raises(ValueError, match=r"size must be at least 1 of 0 examples, got 0"):
        CriticalProbe(batch(0), radius=0.3)
    with pytest.raises(ValueError, match=r"max_steps must be at least 1"):
        CriticalProbe(batch(), radius=0.3, max_steps=-1)(network())


def test_training_goes_on_undisturbed():
    probe = CriticalProbe(batch(), size=20, radius=0.3, method="auto")

    def weights(probed):
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)).double()
        for p in model.parameters():
            nn.init.constant_(p, 0.1)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch()), torch.arange(80) % 3).backward()
            if probed:
                assert len(probe(model).is_critical) == 20
            optimizer.step()
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(True), weights(False))


def test_in_a_group_of_one_process(process_group):
    inputs, model = batch(), network()
    probe = CriticalProbe(inputs, size=30, radius=0.3)
    expected = find_critical(model, probe.inputs, radius=0.3)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for called in (model, wrapped):
        search = probe(called)
        assert torch.equal(search.points, expected.points)
        assert search.evaluations == expected.evaluations


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What one process found, and what each of two found."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    script, torchrun = Path(__file__).with_name("ranks.py"), ["-m", "torch.distributed.run"]
    folder = tmp_path_factory.mktemp("ranks")
    for name, launcher in (
        ("one", []),
        ("two", [*torchrun, "--standalone", "--nproc-per-node", "2"]),
    ):
        (folder / name).mkdir()
        command = [sys.executable, *launcher, str(script), str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    alone = json.loads((folder / "one/0.json").read_text())
    return alone, [json.loads((folder / f"two/{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_two_processes_find_what_one_finds(outcome, method, size):
    alone, (first, second) = outcome
    name = f"{method} {size}"
    expected = alone[name]
    assert first[name] == second[name]
    for key in ("is_critical", "predicted", "first_step", "max_steps", "is_complete", "screening"):
        assert first[name][key] == expected[key], key
    # float64, in other batches.
    torch.testing.assert_close(
        torch.tensor(first[name]["points"]), torch.tensor(expected["points"])
    )


def test_proofs_are_shared(outcome):
    alone, ranks = outcome
    for found in ranks:
        assert found["certified"]["is_certified"] == alone["certified"]["is_certified"]
    assert any(alone["certified"]["is_certified"])


def test_incomplete_on_one_is_incomplete_on_all(outcome):
    for found in outcome[1]:
        assert found["limited"]["is_complete"] is False


@pytest.mark.parametrize("name", ["other examples", "another order", "another number"])
def test_ranks_must_hold_the_same_examples(outcome, name):
    for found in outcome[1]:
        assert isinstance(found[name], str), "was not refused"
        assert found[name].startswith("ValueError: data must be the same on every rank")


def test_a_failure_of_one_is_an_error_on_all(outcome):
    """And none waits for the others."""
    alone, (first, second) = outcome
    assert alone["failed"] == "ZeroDivisionError: seven"
    assert first["failed"].startswith(
        "ValueError: the search failed on rank 1, with ZeroDivisionError: seven"
    )
    assert second["failed"] == "ZeroDivisionError: seven"
    assert first["bad option"].startswith("ValueError: the search failed on rank 1, with ValueErr")
    assert second["bad option"].startswith("ValueError: max_steps must be at least 1, got -1")
    for found in (first, second):
        assert found["afterwards"]["is_critical"] == alone["afterwards"]["is_critical"]
