"""An ensemble: kills, checkpoints, what is refused, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from memtools.data import Tensors
from memtools.models import SmallAlexNet
from memtools.training import Member, Trainer, train_ensemble
from memtools.training.ensemble import auto
from tests.training.ensemble_reference import (
    CLASSES,
    ENGINES,
    NOISY,
    OPTIMIZERS,
    Attention,
    Convolutional,
    data,
    made,
    mlp,
    weights_of,
)


def train(members, **settings: Any):
    return train_ensemble(members, **{"device": "cpu", "batch_size": 16} | settings)


def team(count=4, **noise: Any):
    return [
        Member(mlp(i, **noise), data(50, i % 2), seed=i, learning_rate=0.05 * (1 + i))
        for i in range(count)
    ]


class Kill(Exception):
    pass


def after(epochs):
    """Progress that ends the process's work after so many epochs."""
    seen = 0

    def progress(done):
        nonlocal seen
        seen += done
        if seen == epochs:
            raise Kill

    return progress


# Checkpoints


@pytest.fixture
def every_epoch(monkeypatch):
    """Write a checkpoint after each epoch, however much of the time that takes."""
    monkeypatch.setattr("memtools.training.ensemble.state.SHARE", 1e9)


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_ensemble_is_the_undisturbed_one(engine, options, tmp_path, every_epoch):
    members = [*team(**NOISY), Member(mlp(7, width=3), data(30)), *team(2)]
    settings = {"epochs": 5, "engine": engine, "validation": data(9, 5), **options}
    whole, first, second = (deepcopy(members) for _ in range(3))
    expected = train(whole, **settings)
    path = tmp_path / "new" / "state.pt"
    with pytest.raises(Kill):
        train(first, checkpoint=path, progress=after(2), **settings)
    epochs = []
    results = train(second, checkpoint=path, progress=epochs.append, **settings)
    assert epochs == [2, 1, 1, 1]
    assert results == expected
    for a, b in zip(second, whole, strict=True):
        assert torch.equal(weights_of(a), weights_of(b))
    again = deepcopy(members)
    assert train(again, checkpoint=path, **settings) == expected
    assert torch.equal(weights_of(again[0]), weights_of(whole[0]))


@pytest.mark.parametrize("stop", range(1, 32, 6))
@pytest.mark.parametrize("engine", ["loop", "fused"])
def test_resumed_ensemble_with_leavers_is_the_undisturbed_one(engine, stop, tmp_path, every_epoch):
    settings: dict[str, Any] = {"epochs": 60, "batch_size": 8, "momentum": 0.9}
    settings |= {"engine": engine, "stop_at_train_accuracy": 0.6}
    members = [Member(mlp(i), data(20, i), learning_rate=0.01 * (1 + i)) for i in range(6)]
    whole, first = deepcopy(members), deepcopy(members)
    expected = train(whole, **settings)
    with pytest.raises(Kill):
        train(first, checkpoint=tmp_path / "state.pt", progress=after(stop), **settings)
    assert train(members, checkpoint=tmp_path / "state.pt", **settings) == expected
    for a, b in zip(members, whole, strict=True):
        assert torch.equal(weights_of(a), weights_of(b))


PROGRAM = """
import sys, time, torch
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Member, train_ensemble
torch.set_num_threads(1)
torch.manual_seed(0)
x, t = torch.randn(40, 6), torch.arange(40) % 3
members = [Member(MLP((6,), 3, width=4, dropout=0.2), Tensors(x, t), seed=i) for i in range(3)]
slow = (lambda n: time.sleep(0.01)) if sys.argv[2] == "slow" else None
train_ensemble(members, epochs=100, engine="fused", checkpoint=sys.argv[1], progress=slow, device="cpu")
print(sum(float(p.detach().double().sum()) for m in members for p in m.model.parameters()).hex())
"""  # noqa: E501


def test_survives_a_kill_at_any_moment(tmp_path):
    def run(name, pace):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name), pace]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = run("whole.pt", "fast").communicate()[0]
    killed = run("killed.pt", "slow")
    while not (tmp_path / "killed.pt").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert run("killed.pt", "fast").communicate()[0] == whole != ""


def test_longer_training_goes_on_from_the_checkpoint(tmp_path):
    whole, members = team(), team()
    expected = train(whole, epochs=6, engine="fused", evaluate_every=4)
    train(members, epochs=3, engine="fused", evaluate_every=4, checkpoint=tmp_path / "s.pt")
    results = train(
        members, epochs=6, engine="fused", evaluate_every=4, checkpoint=tmp_path / "s.pt"
    )
    assert results == expected
    assert [[r.epoch for r in own] for own in results] == [[4, 6]] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8}, "batch_size 16, got 8"),
        ({"momentum": 0.5}, "optimizer sgd .momentum 0.0.* got sgd .momentum 0.5"),
        ({"optimizer": "adamw"}, "optimizer sgd .* got adamw"),
        ({"updates_per_epoch": 3}, "updates_per_epoch None, got 3"),
        ({"engine": "vmap"}, "engine fused, got vmap"),
        ({"precision": "float64"}, "precision float32, got float64"),
        ({"stop_at_train_accuracy": 1.0}, "stop_at_train_accuracy None, got 1.0"),
    ],
)
def test_checkpoint_of_other_settings_is_refused(settings, message, tmp_path):
    train(team(), epochs=1, engine="fused", checkpoint=tmp_path / "s.pt")
    with pytest.raises(ValueError, match=rf"s.pt was made with {message}.*; go on with the same"):
        train(team(), epochs=2, checkpoint=tmp_path / "s.pt", **{"engine": "fused"} | settings)


def test_checkpoint_of_other_members_is_refused(tmp_path):
    path = tmp_path / "s.pt"
    train(team(), epochs=1, checkpoint=path)

    def refused(members, message):
        before = [weights_of(member) for member in members]
        with pytest.raises(ValueError, match=message):
            train(members, epochs=2, checkpoint=path)
        for weights, member in zip(before, members, strict=True):
            assert torch.equal(weights, weights_of(member))

    refused(team(3), "number of members 4, got 3")
    other = team()
    other[2].seed = 9
    refused(other, r"seed of members\[2\] 2, got 9; go on")
    other = team()
    other[1].train = data(49)
    refused(other, r"training examples of members\[1\] 50, got 49")
    other = [Member(mlp(i, width=9), data(50), i, m.learning_rate) for i, m in enumerate(team())]
    refused(other, r"does not fit the model of members\[0\]")
    mixed = team()
    mixed[3].model = mlp(3, width=9)
    refused(mixed, "made with other models|does not fit")
    Trainer(mlp(), epochs=1, device="cpu", checkpoint=tmp_path / "trainer.pt").fit(data())
    path = tmp_path / "trainer.pt"
    refused(team(), "something else than the state of an ensemble")
    path.write_bytes(b"nonsense")
    refused(team(), "no checkpoint that can be read")


def test_resumed_auto_goes_on_with_its_engine(tmp_path, monkeypatch):
    path = tmp_path / "s.pt"
    train(team(), epochs=1, checkpoint=path)
    monkeypatch.setattr("memtools.training.ensemble.train.choose", None)  # would fail
    train(team(), epochs=2, checkpoint=path)


# What is left behind


@pytest.mark.parametrize("engine", ENGINES)
def test_random_state_and_threads_are_left(engine):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(team(**NOISY), epochs=2, engine=engine)
    with pytest.raises(FloatingPointError):
        train([Member(mlp(**NOISY), data(), learning_rate=1e38)], engine=engine)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("engine", ENGINES)
def test_global_random_state_does_not_matter(engine):
    first, second = team(**NOISY), team(**NOISY)
    train(first, epochs=2, engine=engine)
    torch.randn(3)
    train(second, epochs=2, engine=engine)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(weights_of(a), weights_of(b))


def test_shared_data_are_left():
    shared = data(50)
    before = shared.inputs.clone()
    train([Member(mlp(i, **NOISY), shared) for i in range(3)], epochs=2, engine="fused")
    assert torch.equal(shared.inputs, before)


# The choice of the engine


@pytest.fixture
def measured(monkeypatch):
    """Measure however short the training is, and forget it afterwards."""
    monkeypatch.setattr(auto, "SHARE", 1e9)
    monkeypatch.setattr(auto, "_chosen", {})
    return auto._chosen


@pytest.mark.parametrize("kind", [lambda: mlp(**NOISY), Attention, lambda: Convolutional(True)])
def test_measuring_leaves_no_trace(kind, measured, monkeypatch):
    shape = (1, 4, 4) if kind not in (Attention,) and "norm" in str(kind()) else (2, 3)
    members = [Member(made(kind, i), data(20, i, shape), seed=i) for i in range(3)]
    chosen = deepcopy(members)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    results = train(members, epochs=2, momentum=0.9)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    ((engine, count),) = measured.values()
    monkeypatch.undo()
    try:
        torch.set_num_threads(count)
        assert train(chosen, epochs=2, momentum=0.9, engine=engine) == results
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(members, chosen, strict=True):
        for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
            assert torch.equal(x, y)


def test_the_fastest_is_taken_and_remembered(measured, monkeypatch):
    calls = []
    pace = {"Loop": 3.0, "Vmapped": 2.0, "Fused": 2.5}

    def seconds(stack, threads, updates):
        calls.append(type(stack).__name__)
        return pace[calls[-1]]

    monkeypatch.setattr(auto, "_seconds", seconds)
    train(team(), epochs=1)
    assert {"Loop", "Vmapped", "Fused"} == set(calls)
    assert [engine for engine, _ in measured.values()] == ["vmap"]
    count = len(calls)
    train(team(), epochs=1)
    assert len(calls) == count
    train(team(3), epochs=1)
    assert len(calls) > count


def test_short_training_is_not_measured(monkeypatch):
    monkeypatch.setattr(auto, "_seconds", None)  # would fail
    train(team(), epochs=3)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"updates_per_epoch": 0}, "updates_per_epoch must be at least 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"engine": "fast"}, "engine must be one of .* got 'fast'"),
        ({"precision": "float16"}, "precision must be one of .* got 'float16'"),
        ({"momentum": -1.0}, "momentum must not be negative, got -1"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum is for optimizer='sgd'"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"device": "tpu9"}, "device must be one of auto, cpu"),
        ({"validation": data(0)}, "validation is empty"),
        ({"validation": data(4).inputs}, "validation must be memtools.data.Tensors, got Tensor"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train(team(1), **settings)


def test_members_that_cannot_be_trained_are_named():
    one = Member(mlp(), data())
    frozen = mlp().requires_grad_(False)
    for members, message in (
        ([], "members is empty"),
        ([one, mlp()], r"members\[1\] must be a Member, got MLP"),
        ([one, Member(mlp(), data(0))], r"train of members\[1\] is empty"),
        ([one, Member(mlp(), [1, 2])], r"train of members\[1\] must be .*Tensors, got list"),  # type: ignore[arg-type]
        ([Member(mlp(), data(), learning_rate=-1)], r"learning_rate of members\[0\]"),
        ([Member(mlp(), data(), weight_decay=-1)], r"weight_decay of members\[0\]"),
        ([one, Member(frozen, data())], r"members\[1\] has no weight with requires_grad"),
        ([one, Member(one.model, data(), 1)], r"members\[0\] and members\[1\] have the same model"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            train(members)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [CLASSES, -1])
def test_targets_out_of_range_are_refused_before_a_step(engine, bad):
    members = team(2)
    members[1].train.targets[7] = bad
    before = [weights_of(member) for member in members]
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2 for 3 classes"):
        train(members, engine=engine)
    for weights, member in zip(before, members, strict=True):
        assert torch.equal(weights, weights_of(member))
    held_out = Tensors(data(5).inputs, torch.full((5,), CLASSES))
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2"):
        train(team(2), engine=engine, validation=held_out)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rate", [1e18, 1e38])
def test_divergence_names_the_member_and_the_epoch(engine, rate):
    members = team(3)
    members[1].learning_rate = rate
    with pytest.raises(FloatingPointError, match=r"members\[1\] diverged.*epoch \d.*learning rate"):
        train(members, engine=engine)


def alex():
    return SmallAlexNet((1, 8, 8), CLASSES, width=4)


class Random(nn.Module):
    def forward(self, x):
        return x * torch.rand(()) if self.training else x


class Branching(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) > 0 else -x


def flat(*layers) -> Any:
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(6, CLASSES))


def _louder(module, args, output):
    return output * 1.5


def hooked():
    model = flat()
    model[1].register_forward_hook(_louder)
    return model


@pytest.mark.parametrize(
    ("engine", "kind", "shape", "message"),
    [
        ("vmap", alex, (1, 8, 8), r"BatchNorm2d\) changes its buffer"),
        ("fused", alex, (1, 8, 8), "SmallAlexNet is neither"),
        ("vmap", lambda: flat(Random()), (6,), r"1 \(Random\) draws random numbers"),
        ("vmap", lambda: flat(nn.AlphaDropout(0.2)), (6,), r"1 \(AlphaDropout\) draws"),
        ("vmap", lambda: flat(Branching()), (6,), r"does not run under torch.func.vmap"),
        ("vmap", hooked, (6,), r"1 \(Linear\) has hooks"),
        ("fused", hooked, (6,), r"1 \(Linear\) has hooks"),
        ("fused", lambda: flat(nn.Tanh()), (6,), r"1 \(Tanh\)"),
        ("fused", lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU()), (6,), "end with a Linear"),
        ("fused", Attention, (2, 3), "Attention is neither"),
    ],
)
def test_engine_that_cannot_says_why_and_auto_can(engine, kind, shape, message):
    members = [Member(made(kind, i), data(10, i, shape), seed=i) for i in range(2)]
    alone = deepcopy(members)
    with pytest.raises(ValueError, match=rf"engine='{engine}' cannot train.*{message}.*'loop'"):
        train(members, engine=engine)
    assert train(members, epochs=2)
    for member in alone:
        Trainer(member.model, epochs=2, batch_size=16, seed=member.seed, device="cpu").fit(
            member.train
        )
    for a, b in zip(members, alone, strict=True):
        torch.testing.assert_close(weights_of(a), weights_of(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
def test_averaged_loss_is_refused(engine):
    with pytest.raises(ValueError, match='reduction="none"'):
        train(team(2), engine=engine, loss_fn=nn.CrossEntropyLoss())
