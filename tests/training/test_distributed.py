"""Two processes train to what one process trains to, up to rounding."""

import json
import subprocess
import sys

import pytest
import torch
from torch import distributed

from memtools.training.devices import Ranks

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="torch was built without distributed training over gloo",
)

# Runs alone and under torchrun alike; every process writes down what it came to.
SCRIPT = """
import json, os, sys
from functools import partial
import torch
from torch import distributed as dist, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Callback, Trainer, evaluate
from memtools.training.devices import Ranks

torch.set_num_threads(1)
out, rank = sys.argv[1], int(os.environ.get("RANK", 0))
found = {}


class Pairs:
    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        return self.tensors.inputs[index], int(self.tensors.targets[index])


class Count(Callback):
    def __init__(self):
        self.steps, self.examples, self.empty = 0, [], 0

    def before_step(self, run, batch):
        self.steps += 1
        self.empty += not batch.counts
        if batch.counts:
            self.examples += batch.indices.tolist()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def data(n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (n,), generator=draw)
    return Tensors(torch.randn(n, 6, generator=draw).double(), targets)


def momentum(weights):
    return SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-3)


def fit(name, n, kind=lambda tensors: tensors, seed=0, **settings):
    # Every rank begins with weights of its own; those of rank 0 count.
    torch.manual_seed(rank)
    model = MLP((6,), 3, width=8)
    count = Count()
    trainer = Trainer(
        model,
        scheduler=lambda o: StepLR(o, 2, 0.5),
        device="cpu",
        callbacks=[count],
        **{"epochs": 3, "batch_size": 16, "precision": "float64", "optimizer": momentum} | settings,
    )
    results = trainer.fit(kind(data(n)), kind(data(21, seed=1)))
    found[name] = {
        "weights": nn.utils.parameters_to_vector(model.parameters()).tolist(),
        "results": [vars(r) for r in results],
        "steps": count.steps,
        "examples": count.examples,
        "empty": count.empty,
        "group left": dist.is_initialized(),
    }
    return model


def refused(name, n, **settings):
    try:
        fit(name, n, **settings)
    except (ValueError, FloatingPointError) as error:
        found[name] = f"{type(error).__name__}: {error}"


def main():
    fit("even", 48)
    fit("uneven", 43)
    fit("a last batch of one", 33)
    fit("fewer than processes", 1)
    fit("loader", 33, Pairs)
    fit("workers", 33, Pairs, workers=2, epochs=1)
    fit("single", 43, precision="float32")
    checkpoint = os.path.join(out, "state.pt")
    fit("begun", 33, epochs=1, checkpoint=checkpoint)
    fit("resumed", 33, checkpoint=checkpoint)
    refused("odd batch size", 48, batch_size=15)
    refused("diverged", 33, optimizer=partial(SGD, lr=1e300))

    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    model = fit("own group", 43)
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    for n in (1, 5, 43):
        for batch_size in (1, 4, 1024):
            for kind in (lambda tensors: tensors, Pairs):
                got = evaluate(model, kind(data(n)), batch_size=batch_size, ranks=ranks)
                found.setdefault("evaluation", []).append([got.loss, got.accuracy])
    with open(os.path.join(out, f"{rank}.json"), "w") as file:
        json.dump(found, file)
    if dist.is_initialized():
        dist.destroy_process_group()


# Processes that load data come back to this file.
if __name__ == "__main__":
    main()
"""
TRAINED = [
    "even",
    "uneven",
    "a last batch of one",
    "fewer than processes",
    "loader",
    "workers",
    "begun",
    "resumed",
    "own group",
]
STEPS = {
    "even": 9,
    "uneven": 9,
    "workers": 3,
    "fewer than processes": 3,
    "begun": 3,
    "own group": 9,
}
SIZES = {"even": 48, "uneven": 43, "fewer than processes": 1, "own group": 43}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What one process found, and what each of two found."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        (folder / name).mkdir()
        command = [sys.executable, *launcher, str(script), str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    alone = json.loads((folder / "one/0.json").read_text())
    return alone, [json.loads((folder / f"two/{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_end_with_the_weights_of_one(name, outcome):
    alone, together = outcome
    expected = torch.tensor(alone[name]["weights"], dtype=torch.float64)
    first, second = (torch.tensor(r[name]["weights"], dtype=torch.float64) for r in together)
    assert torch.equal(first, second)
    # Sums of float64 in another order, over at most 9 steps of values of order one.
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-10)


def test_single_precision_agrees_up_to_its_rounding(outcome):
    alone, together = outcome
    expected = torch.tensor(alone["single"]["weights"])
    first, second = (torch.tensor(rank["single"]["weights"]) for rank in together)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_take_the_same_steps(name, outcome):
    alone, together = outcome
    for rank in together:
        assert rank[name]["steps"] == alone[name]["steps"] == STEPS.get(name, 9)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_share_the_examples(name, outcome):
    alone, together = outcome
    both = [e for rank in together for e in rank[name]["examples"]]
    assert sorted(both) == sorted(alone[name]["examples"])
    epochs = {"begun": 1, "workers": 1, "resumed": 2}.get(name, 3)
    assert sorted(both) == sorted(list(range(SIZES.get(name, 33))) * epochs)


def test_a_process_without_a_share_takes_part_and_does_not_count(outcome):
    _, together = outcome
    for name in ("a last batch of one", "loader", "fewer than processes"):
        assert [rank[name]["empty"] for rank in together] == [0, 3]
    assert [rank["workers"]["empty"] for rank in together] == [0, 1]


@pytest.mark.parametrize("name", TRAINED)
def test_results_agree_with_one_process_and_across_ranks(name, outcome):
    alone, together = outcome
    assert together[0][name]["results"] == together[1][name]["results"]
    for one, two in zip(alone[name]["results"], together[0][name]["results"], strict=True):
        assert two == pytest.approx(one, rel=1e-10)


def test_resumed_run_is_the_undisturbed_one(outcome):
    for rank in (outcome[0], *outcome[1]):
        assert rank["resumed"]["weights"] == rank["a last batch of one"]["weights"]
        assert rank["resumed"]["results"] == rank["a last batch of one"]["results"]


def test_batch_size_must_divide_among_the_processes(outcome):
    alone, together = outcome
    assert len(alone["odd batch size"]["results"]) == 3
    for rank in together:
        assert rank["odd batch size"] == (
            "ValueError: batch_size is global and must divide by the number of processes: "
            "got 15 for 2"
        )


def test_divergence_is_an_error_on_every_process(outcome):
    alone, together = outcome
    for rank in (alone, *together):
        assert rank["diverged"].startswith("FloatingPointError: training diverged")


def test_a_group_of_the_user_is_left_and_one_of_our_own_is_not(outcome):
    for rank in outcome[1]:
        assert rank["own group"]["group left"]
        assert not rank["even"]["group left"]


def test_evaluation_agrees_however_the_examples_are_shared(outcome):
    alone, together = outcome
    assert together[0]["evaluation"] == together[1]["evaluation"]
    for one, two in zip(alone["evaluation"], together[0]["evaluation"], strict=True):
        # Sums of at most 43 float64 losses in another order, at weights equal up to 1e-10.
        assert two == pytest.approx(one, rel=1e-9)
        assert two[1] == one[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 16])
def test_shares_are_the_batch_in_order(n, world_size):
    indices = torch.randperm(n)
    shares = [Ranks(rank, world_size).share(indices) for rank in range(world_size)]
    assert torch.equal(torch.cat(shares), indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group():
    assert Ranks().sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    initialized = distributed.is_initialized()
    Ranks().wait()
    assert distributed.is_initialized() == initialized
