"""Loss sensitivity of short trainings on any numbers, against one graph of the whole training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from tests.properties.tensors import any_number, batches, ugly
from tests.sensitivity import unrolled

ORDERS = st.sampled_from([1, 2, math.inf])


def train(inputs, targets, indices, rate=0.1):
    """A linear model after updates on these examples, its tape, and how it began."""
    model = nn.Linear(inputs.shape[1], 3, dtype=inputs.dtype)
    with torch.no_grad():
        model.weight.copy_(torch.arange(model.weight.numel()).view_as(model.weight) / 10)
        model.bias.zero_()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    tape = memtools.TrainingTape(model, optimizer)
    for chosen in indices:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.detach()[chosen]), targets[chosen]).backward()
        tape.record(chosen)
        optimizer.step()
    tape.close()
    return tape, first


def graph(tape, first, inputs, targets, indices, rate=0.1):
    model = nn.Linear(inputs.shape[1], 3, dtype=inputs.dtype)
    model.load_state_dict(first)
    options = {"lr": rate, "momentum": 0, "weight_decay": 0, "maximize": False}
    count = len(indices)
    return unrolled.Unrolled(
        model, inputs.detach(), targets, [torch.tensor(i) for i in indices],
        unrolled.UPDATES["SGD"], [dict.fromkeys(first, options)] * count,
        [torch.get_rng_state()] * count, [(True,)] * count,
    )  # fmt: skip


@st.composite
def trainings(draw, dtypes=(torch.float64,)):
    inputs = draw(batches(any_number, dtypes, rows=4, columns=(1, 3)))
    n = len(inputs)
    targets = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    batch = st.lists(st.integers(0, n - 1), min_size=1, max_size=3)
    return inputs, targets, draw(st.lists(batch, min_size=1, max_size=3))


@settings(max_examples=60)
@given(trainings(), ORDERS)
def test_sensitivity_is_that_of_one_graph_or_is_refused(training, p):
    inputs, targets, indices = training
    tape, first = train(inputs, targets, indices)
    try:
        found = memtools.loss_sensitivity(tape, (inputs, targets), p=p)
        of_classes = memtools.per_class_loss_sensitivity(
            tape, (inputs, targets), p=p, num_classes=3
        )
    except ValueError as error:
        # Far beyond any data the losses, or a product of two inputs, overflow.
        if bool(inputs.isfinite().all()) and float(inputs.abs().max()) < 1e100:
            raise AssertionError from error
        return
    assert bool(found.isfinite().all())
    if float(inputs.detach().abs().max()) > 1e3:
        return  # logits that jump by more than a replay can follow
    times, run = range(1, len(indices) + 1), graph(tape, first, inputs, targets, indices)
    wanted = unrolled.loss_sensitivity(run, times, p=p)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    wanted = unrolled.per_class(run, times, 3, p=p)
    torch.testing.assert_close(of_classes, wanted, rtol=1e-6, atol=1e-9, equal_nan=True)


INPUTS, TARGETS, INDICES = torch.eye(3), torch.arange(3), [[0, 1], [2], [1, 2]]


FINE = {("at", "None"), ("window", "None"), ("memory", "a Python number")}


@pytest.fixture(scope="module")
def recorded():
    return train(INPUTS, TARGETS, INDICES)[0]


FUNCTIONS = {
    "loss_sensitivity": memtools.loss_sensitivity,
    "per_class_loss_sensitivity": memtools.per_class_loss_sensitivity,
    "sensitivity_maps": lambda tape, data, **k: memtools.sensitivity_maps(tape, data, [0], **k),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ugly_data_are_refused_in_words(name, recorded):
    for value in ugly().values():
        for data in ((value, TARGETS), (INPUTS, value), value):
            with pytest.raises((TypeError, ValueError), match=r"data|inputs|targets|update 1"):
                FUNCTIONS[name](recorded, data)


def test_an_ugly_objective_is_refused_in_words(recorded):
    for value in ugly().values():
        for objective in ((value, TARGETS), (INPUTS, value)):
            with pytest.raises((TypeError, ValueError), match=r"objective|targets"):
                memtools.loss_sensitivity(recorded, (INPUTS, TARGETS), objective=objective)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("option", ["at", "window", "memory", "part"])
def test_ugly_options_are_refused_in_words(name, option, recorded):
    for kind, value in ugly().items():
        if (option, kind) in FINE:
            continue
        with pytest.raises((TypeError, ValueError), match=option):
            FUNCTIONS[name](recorded, (INPUTS, TARGETS), **{option: value})


def test_ugly_numbers_of_examples_are_refused_in_words(recorded):
    for value in ugly().values():
        with pytest.raises((TypeError, ValueError), match="examples"):
            memtools.sensitivity_maps(recorded, (INPUTS, TARGETS), value)


@pytest.mark.parametrize("kind", ugly())
def test_ugly_indices_are_refused_in_words(kind):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tape = memtools.TrainingTape(model, optimizer)
    F.cross_entropy(model(INPUTS), TARGETS).backward()
    with pytest.raises((TypeError, ValueError), match="indices"):
        tape.record(ugly()[kind])
    assert len(tape) == 0


@pytest.mark.parametrize("wrong", [[0, 3], [-1]])
def test_indices_that_the_data_have_not_are_named(wrong):
    tape, _ = train(torch.eye(4)[:, :3], torch.arange(4) % 3, [[0, 1], [i % 4 for i in wrong]])
    with pytest.raises(ValueError, match=r"update 2 was recorded with indices from .* to 3"):
        memtools.loss_sensitivity(tape, (INPUTS, TARGETS))


@pytest.mark.parametrize("option", ["p", "sketch", "num_classes", "count"])
@pytest.mark.parametrize("value", [-1, 0, 2.5, math.nan, "two"])
def test_other_options_out_of_range_are_refused(option, value, recorded):
    call = {
        "p": lambda: memtools.loss_sensitivity(recorded, (INPUTS, TARGETS), p=value),
        "sketch": lambda: memtools.loss_sensitivity(recorded, (INPUTS, TARGETS), sketch=value),
        "num_classes": lambda: memtools.per_class_loss_sensitivity(
            recorded, (INPUTS, TARGETS), num_classes=value
        ),
        "count": lambda: recorded.spaced(value),
    }[option]
    with pytest.raises((TypeError, ValueError), match=rf"{option} must"):
        call()


def test_the_largest_batch_need_not_be_the_first():
    indices = [[0], [0, 1, 2]]
    tape, first = train(INPUTS.double(), TARGETS, indices)
    found = memtools.loss_sensitivity(tape, (INPUTS.double(), TARGETS))
    run = graph(tape, first, INPUTS.double(), TARGETS, indices)
    torch.testing.assert_close(found, unrolled.loss_sensitivity(run, [1, 2]), rtol=1e-9, atol=0)


def test_a_batch_with_nan_is_named():
    inputs: Tensor = torch.eye(3).clone()
    inputs[2, 0] = math.nan
    tape, _ = train(inputs, TARGETS, INDICES)
    with pytest.raises(ValueError, match="update 2 had a gradient that was NaN or infinite"):
        memtools.loss_sensitivity(tape, (INPUTS, TARGETS))
    with pytest.raises(ValueError, match="data holds inputs that are NaN or infinite"):
        memtools.loss_sensitivity(tape, (inputs, TARGETS))
