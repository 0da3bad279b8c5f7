"""An ensemble: each member as if it had been trained alone."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools import seeds
from memtools.data import Tensors
from memtools.models import MLP, GaussianNoise
from memtools.training import Member, train_ensemble
from tests.training.ensemble_reference import (
    CLASSES,
    ENGINES,
    NOISY,
    OPTIMIZERS,
    SHAPE,
    Attention,
    Convolutional,
    data,
    made,
    mlp,
    trained_alone,
    trained_by_stream,
    weights_of,
)

# A few dozen updates in float64 in networks whose values are of order one: rounding, amplified by
# AdamW's division where gradients are small.
TOLERANCE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def train(members, **settings: Any):
    own: dict[str, Any] = {"precision": "float64", "device": "cpu", **settings}
    return train_ensemble(members, **own)


def assert_equal(members, results, expected_members, expected_results):
    for member, expected in zip(members, expected_members, strict=True):
        for (name, a), (_, b) in zip(
            member.model.state_dict().items(), expected.model.state_dict().items(), strict=True
        ):
            torch.testing.assert_close(a, b, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")
        assert member.model.training
    for own, expected in zip(results, expected_results, strict=True):
        assert len(own) == len(expected)
        for a, b in zip(own, expected, strict=True):
            assert (a.epoch, a.updates, a.learning_rate) == (b.epoch, b.updates, b.learning_rate)
            assert a.train_accuracy == b.train_accuracy
            assert a.validation_accuracy == b.validation_accuracy
            assert a.loss == pytest.approx(b.loss, rel=1e-10)
            assert a.validation_loss == (
                None if b.validation_loss is None else pytest.approx(b.validation_loss, rel=1e-10)
            )


def assert_as_alone(members, options, *, validation=None, engine="auto", **settings):
    expected = trained_alone(members, options, validation, **settings)
    members = deepcopy(members)
    results = train(members, validation=validation, engine=engine, **options, **settings)
    assert_equal(members, results, *expected)


@pytest.mark.parametrize("noise", [{}, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("alike", [True, False])
def test_members_train_as_alone(engine, options, noise, alike):
    members = [
        Member(
            mlp(i, **noise),
            data(50, i % 2),
            seed=i,
            learning_rate=0.05 if alike else 0.03 * (1 + i),
            weight_decay=0.02 if alike else 0.01 * i,
        )
        for i in range(4)
    ]
    # The last batch of 50 holds two examples.
    assert_as_alone(
        members, options, engine=engine, validation=data(21, 9), epochs=3, batch_size=16
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n", [1, 5, 16, 17])
def test_odd_sizes_train_as_alone(engine, n):
    members = [Member(mlp(i, **NOISY), data(n, i), seed=i, learning_rate=0.1) for i in range(3)]
    assert_as_alone(members, {"momentum": 0.5}, engine=engine, epochs=3, batch_size=16)


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("kind", [Attention, Convolutional])
def test_other_architectures_train_as_alone(engine, kind):
    shape = SHAPE if kind is Attention else (1, 4, 4)
    members = [
        Member(made(kind, i), data(20, i, shape), seed=i, weight_decay=0.01, learning_rate=0.1)
        for i in range(3)
    ]
    for options in (OPTIMIZERS["nesterov"], OPTIMIZERS["adamw"]):
        assert_as_alone(members, options, engine=engine, epochs=3, batch_size=8)


def test_batch_norm_trains_as_alone():
    members = [
        Member(made(lambda: Convolutional(norm=True), i), data(20, i, (1, 4, 4)), seed=i)
        for i in range(2)
    ]
    assert_as_alone(
        members, {"momentum": 0.9}, epochs=3, batch_size=8, validation=data(9, 5, (1, 4, 4))
    )


def test_everything_mixed_in_one_call():
    shared = data(40)
    relabelled = Tensors(shared.inputs, (shared.targets + 1) % CLASSES)
    members = [
        Member(mlp(0), shared, seed=3, learning_rate=0.1),
        Member(made(Attention), shared, learning_rate=0.03),
        Member(mlp(1), relabelled, seed=1, weight_decay=0.1),
        Member(mlp(2, width=5), data(33, 2)),
        Member(mlp(3, **NOISY), shared, seed=2),
        Member(mlp(4, **{name: v / 2 for name, v in NOISY.items()}), relabelled, seed=2),
        Member(mlp(5, dropout=0.5), shared),
    ]
    assert_as_alone(members, {"momentum": 0.9}, epochs=3, batch_size=16, validation=data(10, 4))


def sequential(seed, *layers, features=6):
    with seeds.seeded("weights", seed):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(features, 5), *layers, nn.Linear(5, CLASSES, bias=False)
        )


RELU = nn.ReLU(inplace=True)
DROPOUT = nn.Dropout(0.4, inplace=True)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [nn.Identity(), nn.Sequential(nn.ReLU(), nn.Linear(5, 5)), nn.ReLU()],
        [RELU, nn.Linear(5, 5), RELU],  # the same module twice
        [DROPOUT, nn.Linear(5, 5), DROPOUT],
        [nn.ReLU(), nn.Dropout(0.5), GaussianNoise(0.3), nn.ReLU(), nn.Dropout(0.2)],
        [GaussianNoise(0.0), nn.Dropout(0.0), nn.ReLU()],
        [nn.ReLU(), nn.Dropout(1.0)],
    ],
)
@pytest.mark.parametrize("engine", ["vmap", "fused"])
def test_any_sequence_of_layers_trains_as_alone(engine, layers):
    members = [
        Member(sequential(i, *deepcopy(layers)), data(20, i), seed=i, learning_rate=0.1)
        for i in range(3)
    ]
    assert_as_alone(members, {"momentum": 0.9}, engine=engine, epochs=2, batch_size=8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "frozen", [["layers.1.weight"], ["layers.1.weight", "layers.1.bias", "layers.3.bias"]]
)
def test_frozen_weights_stay(engine, frozen):
    members = [Member(mlp(i), data(20, i), weight_decay=0.1) for i in range(3)]
    for member in members:
        for name, weight in member.model.named_parameters():
            weight.requires_grad_(name not in frozen)
    before = [member.model.get_parameter(frozen[0]).clone() for member in members]
    assert_as_alone(members, {"momentum": 0.9}, engine=engine, epochs=2, batch_size=8)
    train(members, epochs=1, engine=engine)
    for member, weight in zip(members, before, strict=True):
        assert torch.equal(member.model.get_parameter(frozen[0]), weight.double())


def test_tied_weights_train_as_alone():
    members = [Member(mlp(i, depth=3), data(20, i)) for i in range(2)]
    for member in members:
        layers: Any = member.model.layers
        layers[5].weight = layers[3].weight
    assert_as_alone(members, {"momentum": 0.9}, epochs=2, batch_size=8)


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
def test_other_losses_are_used(engine):
    def squared(logits, targets):
        return (logits - F.one_hot(targets, CLASSES)).square().sum(1)

    members = [Member(mlp(i), data(20, i)) for i in range(3)]
    assert_as_alone(
        members, {}, engine=engine, epochs=2, batch_size=8, loss_fn=squared, validation=data(7, 5)
    )


@pytest.mark.parametrize("engine", ["vmap", "fused"])
def test_single_precision_stays_near_double(engine):
    members = [Member(mlp(i, **NOISY), data(50, i), seed=i, learning_rate=0.1) for i in range(3)]
    expected, _ = trained_alone(
        members, {"momentum": 0.9}, epochs=3, batch_size=16, precision="float32"
    )
    train(members, epochs=3, batch_size=16, momentum=0.9, engine=engine, precision="float32")
    for member, alone in zip(members, expected, strict=True):
        assert weights_of(member).dtype == torch.float32
        # 12 updates, each with some 50 roundings of 2^-24 in values of order one, and momentum
        # that keeps them ten times as long.
        difference = (weights_of(member) - weights_of(alone)).abs().max()
        assert float(difference) < 12 * 50 * 10 * 2**-24


def test_loop_is_the_trainer_bit_for_bit():
    members = [Member(mlp(i, **NOISY), data(50, i), seed=i) for i in range(2)]
    expected, results = trained_alone(
        members, {"momentum": 0.9}, epochs=2, batch_size=16, precision="float32"
    )
    own = train(members, epochs=2, batch_size=16, momentum=0.9, engine="loop", precision="float32")
    assert own == results
    for member, alone in zip(members, expected, strict=True):
        assert torch.equal(weights_of(member), weights_of(alone))


def test_inputs_of_another_layout_train_as_alone():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(*SHAPE, 20, generator=draw).permute(2, 0, 1)
    train_set = Tensors(inputs, torch.arange(20) % CLASSES)
    members = [Member(mlp(i, **NOISY), train_set, seed=i) for i in range(2)]
    for engine in ENGINES:
        assert_as_alone(members, {}, engine=engine, epochs=2, batch_size=8)


def test_tokens_train_as_alone():
    inputs = torch.randint(7, (20, 4), generator=torch.Generator().manual_seed(0))
    tokens = Tensors(inputs, inputs[:, 0] % CLASSES)
    members = [
        Member(
            made(
                lambda: nn.Sequential(
                    nn.Embedding(7, 3), nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, CLASSES)
                ),
                i,
            ),
            tokens,
            seed=i,
        )
        for i in range(3)
    ]
    for engine in ("loop", "vmap", "auto"):
        assert_as_alone(members, {"momentum": 0.9}, engine=engine, epochs=2, batch_size=8)


# Epochs of so many updates


@pytest.mark.parametrize("options", [OPTIMIZERS["nesterov"], OPTIMIZERS["adamw"]])
@pytest.mark.parametrize("engine", ENGINES)
def test_epochs_of_so_many_updates_follow_the_stream(engine, options):
    lengths = (50, 31, 17, 16, 9)  # the last one is less than a batch
    members = [
        Member(mlp(i, **NOISY), data(n, i), seed=i, learning_rate=0.05, weight_decay=0.01)
        for i, n in enumerate(lengths)
    ]
    settings = {"epochs": 3, "batch_size": 16, "updates_per_epoch": 5}
    expected = [trained_by_stream(member, options, **settings) for member in members]
    results = train(members, engine=engine, **settings, **options)
    for member, own, (model, alone) in zip(members, results, expected, strict=True):
        torch.testing.assert_close(weights_of(member), weights_of(model), **TOLERANCE)
        assert [r.updates for r in own] == [5, 10, 15]
        for result, (loss, accuracy) in zip(own, alone, strict=True):
            assert result.loss == pytest.approx(loss, rel=1e-10)
            assert result.train_accuracy == accuracy


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_now_and_then_changes_nothing_else(engine):
    members = [Member(mlp(i), data(50, i)) for i in range(2)]
    often, seldom = deepcopy(members), deepcopy(members)
    every = train(often, epochs=5, engine=engine)
    third = train(seldom, epochs=5, engine=engine, evaluate_every=3)
    assert [[r.epoch for r in own] for own in third] == [[3, 5]] * 2
    assert third == [[r for r in own if r.epoch in (3, 5)] for own in every]
    for a, b in zip(often, seldom, strict=True):
        assert torch.equal(weights_of(a), weights_of(b))


# Early leavers


@pytest.mark.parametrize("engine", ENGINES)
def test_who_reaches_the_accuracy_stops_as_alone(engine):
    goal = 0.7
    members = [Member(mlp(i), data(20, i), learning_rate=0.05 * (1 + i), seed=i) for i in range(6)]
    settings = {"epochs": 60, "batch_size": 8, "stop_at_train_accuracy": goal}
    expected, results = trained_alone(members, {"momentum": 0.9}, **settings)
    lengths = {len(own) for own in results}
    assert len(lengths) > 2  # they leave at different times
    own = train(members, momentum=0.9, engine=engine, **settings)
    assert_equal(members, own, expected, results)


def test_a_member_does_not_depend_on_the_company():
    members = [Member(mlp(i, **NOISY), data(50, i), seed=i) for i in range(3)]
    alone = deepcopy(members[1])
    train(members, epochs=2, engine="fused")
    train([alone], epochs=2, engine="fused")
    torch.testing.assert_close(weights_of(members[1]), weights_of(alone), **TOLERANCE)


def test_stacks_of_any_size_are_the_same(monkeypatch):
    members = [Member(mlp(i, **NOISY), data(50, i), seed=i) for i in range(5)]
    small = deepcopy(members)
    train(members, epochs=2, engine="fused")
    monkeypatch.setattr("memtools.training.ensemble.engines.STACK_BYTES", 30_000)
    train(small, epochs=2, engine="fused")
    for a, b in zip(members, small, strict=True):
        torch.testing.assert_close(weights_of(a), weights_of(b), **TOLERANCE)


def test_a_subclass_that_computes_something_else_is_not_fused():
    class Twice(MLP):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    with seeds.seeded("weights"):
        members = [Member(Twice(SHAPE, CLASSES, width=4), data(20, i)) for i in range(2)]
    assert_as_alone(members, {}, epochs=2, batch_size=8)
    with pytest.raises(ValueError, match="Twice is neither"):
        train(members, engine="fused")


def test_models_that_differ_in_an_attribute_are_kept_apart():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.linear = scale, nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.linear(x.flatten(1)) * self.scale

    with seeds.seeded("weights"):
        members = [Member(Scaled(scale), data(20)) for scale in (1.0, 3.0, torch.ones(3))]
    assert_as_alone(members, {}, engine="vmap", epochs=2, batch_size=8)
