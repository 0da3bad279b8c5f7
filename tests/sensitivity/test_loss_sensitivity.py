"""Sensitivities read off a tape, against one graph of the whole training."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import memtools
from memtools.data import Tensors

PARTS = ("total", "direct", "indirect")
AT = [8, 0, 3, 3, 5]
"""In no order, one of them twice, the beginning and the end."""


def assert_near(found, expected, tolerance=1e-10):
    """Largest difference relative to the largest number."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def data_of(case):
    return case.x, case.y


@pytest.fixture
def assert_case(cases, unroll, unrolled):
    """A function that compares all parts at many times; options are those of the tape."""

    def compare(case, *, parts=PARTS, at=AT, between=None, **tape):
        trained = cases.train(case, tape=tape, between=between)
        run = unroll(case, trained)
        for part in parts:
            found = memtools.loss_sensitivity(trained.tape, data_of(case), at=at, part=part)
            assert_near(found, unrolled.loss_sensitivity(run, at, part=part))

    return compare


@pytest.fixture
def recorded(cases):
    """A case and its training, which most options are tried on."""
    case = cases.build("relu", "all of SGD")
    return case, cases.train(case, tape={})


# Which training.


def test_every_optimizer(optimizer_name, cases, assert_case):
    assert_case(cases.build("mlp", optimizer_name))


@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all"])
def test_every_model(network_name, optimizer, cases, assert_case):
    assert_case(cases.build(network_name, optimizer))


def test_models_of_the_zoo(zoo, model_name, cases, assert_case):
    of_zoo = zoo.build(model_name, torch.float64)
    case = cases.build("mlp", batches=[torch.tensor([0, 1, 2]), torch.tensor([4, 2])] * 2)
    case.model, case.x, case.y = of_zoo.model, of_zoo.inputs, of_zoo.targets
    if model_name == "record with logits":
        case.model = cases.Net(lambda m, x: m.of_zoo(x).logits, of_zoo=of_zoo.model)
    if model_name != "spectral_norm":
        assert_case(case, at=[4, 0, 2])
        return
    with pytest.raises(ValueError, match="buffer"):
        assert_case(case, at=[4, 0, 2])


@pytest.mark.parametrize(
    "name",
    ["weight also without gradient and detached", "mixture of experts", "second derivatives"],
)
def test_computations_that_depend_on_values(name, gradient_zoo, cases, assert_case):
    of_zoo = gradient_zoo.build(name, torch.float64, 5)
    case = cases.build("mlp", batches=[torch.tensor([0, 1, 2]), torch.tensor([4, 2])] * 2)
    case.model, case.x, case.y = of_zoo.model, of_zoo.inputs, of_zoo.targets
    case.loss_fn = of_zoo.loss
    assert_case(case, at=[4, 0, 2])


def test_a_branch_that_depends_on_the_batch(cases, assert_case):
    case = cases.build("mlp")
    case.model = cases.Net(
        lambda m, x: m.one(x) if x.sum() > 0 else m.other(x),
        one=nn.Linear(4, cases.CLASSES),
        other=nn.Linear(4, cases.CLASSES),
    ).double()
    assert_case(case)


@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all"])
@pytest.mark.parametrize("model", ["batch_norm", "dropout"])
def test_training_anew(model, optimizer, cases, unrolled):
    case = cases.build(model, optimizer)
    example, *rest = element = (int(case.batches[0][0]), *(s // 2 for s in case.x.shape[1:]))
    expected = unrolled.difference(
        lambda x: cases.train(case, x=x, losses=True).losses, case.x, element
    )
    tape, at = cases.train(case, tape={}).tape, range(len(case.batches) + 1)
    maps = memtools.sensitivity_maps(tape, data_of(case), [example], at=at)
    found = maps[(slice(None), 0, *rest)]
    assert (found - expected).abs().max() <= 1e-5 * maps.abs().max()


@pytest.mark.parametrize("model", ["sometimes_unused", "frozen"])
@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all"])
def test_gradients_set_to_zero_and_not_to_none(model, optimizer, cases, assert_case):
    assert_case(cases.build(model, optimizer, keep_gradients=True))


@pytest.mark.parametrize("optimizer", ["momentum", "amsgrad", "lion"])
def test_a_tape_that_begins_within_a_training(optimizer, cases, assert_case):
    assert_case(cases.build("batch_norm", optimizer, batches=cases.batches(11), warm_up=3))


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_an_example_several_times_in_a_batch(model, cases, assert_case):
    batches = [batch[[0, 1, 1, -1, 0, 1]] for batch in cases.batches()]
    assert_case(cases.build(model, batches=batches))


def test_updates_of_one_example(cases, assert_case):
    assert_case(cases.build("relu", "adam, all", batches=cases.batches(size=1)))


def test_a_sum_of_losses(cases, assert_case):
    case = cases.build("mlp", optimizer="sgd", reduction="sum")
    case.optimizer = cases.of(torch.optim.SGD, lr=0.1)
    assert_case(case)


def test_an_own_loss(cases, assert_case):
    def squares(logits, y):
        return (logits - nn.functional.one_hot(y, logits.shape[1])).square().sum(1)

    assert_case(cases.build("mlp", loss_fn=squares))


def test_a_training_in_eval_mode(cases, assert_case):
    case = cases.build("batch_norm")
    case.model.eval()
    assert_case(case)


def test_a_frozen_parameter_that_the_optimizer_never_saw(cases, assert_case):
    case = cases.build("frozen")
    make = case.optimizer
    case.optimizer = lambda parameters: make([p for p in parameters if p.requires_grad])
    assert_case(case)


@pytest.mark.parametrize("optimizer", ["adam", "adamw, all"])
def test_an_element_that_is_0_everywhere_under_adam(optimizer, cases, assert_case):
    case = cases.build("relu", optimizer)
    case.x[:, 1] = 0
    assert_case(case)


def test_targets_that_are_no_classes(cases, assert_case):
    case = cases.build("mlp", loss_fn=lambda output, y: (output - y).square().sum(1))
    case.y = cases.draw(cases.N, cases.CLASSES, seed=5)
    assert_case(case)


def test_a_dead_unit_under_adam_is_finite(cases, assert_case):
    case = cases.build("relu", "adam")
    with torch.no_grad():
        case.model[0].bias[0] = -100
    assert_case(case)


def test_random_numbers_drawn_between_the_updates(cases, assert_case):
    assert_case(cases.build("dropout"), between=lambda *_: torch.rand(3))


def test_an_evaluation_between_the_updates(cases, assert_case):
    case = cases.build("batch_norm")

    def evaluate(model, optimizer, number):
        cases.mean_loss(model, case.x, case)

    assert_case(case, between=evaluate)


@pytest.mark.parametrize("optimizer", ["momentum", "adam, all"])
def test_statistics_that_stay_from_some_update_on(optimizer, cases, assert_case):
    case = cases.build("batch_norm", optimizer)
    assert_case(case, between=cases.statistics_stay_from(4))


def test_momentum_that_begins_in_the_middle(cases, assert_case):
    def begin(model, optimizer, number):
        optimizer.param_groups[0]["momentum"] = 0.5 if number > 3 else 0.0

    assert_case(cases.build("mlp", "sgd"), between=begin)


def test_momentum_that_ends_in_the_middle(cases, assert_case):
    def end(model, optimizer, number):
        optimizer.param_groups[0]["momentum"] = 0.5 if number <= 3 else 0.0

    assert_case(cases.build("mlp", "momentum"), between=end)


def test_a_weight_that_is_frozen_in_the_middle(cases, assert_case):
    def freeze(model, optimizer, number):
        model[0].weight.grad = None
        model[0].weight.requires_grad_(number <= 3)

    assert_case(cases.build("mlp", "momentum"), between=freeze)


# How it is kept.


@pytest.mark.parametrize("store", [None, "cpu", "folder"])
@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize(
    ("model", "optimizer"), [("batch_norm", "all of SGD"), ("dropout", "adamw, all")]
)
def test_every_way_to_keep_the_weights(
    model, optimizer, every, store, tmp_path, cases, assert_case
):
    store = tmp_path / "tape" if store == "folder" else store
    assert_case(cases.build(model, optimizer), parts=["total"], every=every, store=store)


# Which numbers of it.


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("part", PARTS)
def test_orders_of_the_norm(p, part, recorded, unroll, unrolled):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case), at=AT, part=part, p=p)
    expected = unrolled.loss_sensitivity(unroll(case, trained), AT, part=part, p=p)
    assert_near(found, expected)


def test_all_times_after_the_start_are_the_default(recorded):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case))
    at = list(range(1, len(case.batches) + 1))
    assert torch.equal(found, memtools.loss_sensitivity(trained.tape, data_of(case), at=at))


@pytest.mark.parametrize("at", [3, torch.tensor(3), torch.tensor([3]), range(3, 4)])
def test_one_time(at, recorded):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case), at=at)
    assert torch.equal(found, memtools.loss_sensitivity(trained.tape, data_of(case), at=[3]))


def test_times_do_not_depend_on_those_asked_beside_them(recorded):
    case, trained = recorded
    together = memtools.loss_sensitivity(trained.tape, data_of(case), at=AT)
    for row, t in zip(together, AT, strict=True):
        alone = memtools.loss_sensitivity(trained.tape, data_of(case), at=[t])
        assert_near(alone[0], row, 1e-12)


def test_an_example_in_no_batch_has_no_indirect_part(recorded):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case), part="indirect")
    assert (found[:, -1] == 0).all()
    assert (found[-1, :-1] > 0).all()


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
@pytest.mark.parametrize("part", PARTS)
def test_the_loss_of_other_data(model, part, cases, unroll, unrolled):
    case = cases.build(model)
    trained = cases.train(case, tape={})
    other = cases.draw(5, *case.x.shape[1:], seed=9), torch.tensor([0, 2, 1, 1, 0])
    found = memtools.loss_sensitivity(
        trained.tape, data_of(case), at=AT, part=part, objective=other
    )
    expected = unrolled.loss_sensitivity(unroll(case, trained), AT, part=part, objective=other)
    if part == "direct":
        assert torch.equal(found, torch.zeros_like(expected))
    else:
        assert_near(found, expected)


@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all", "lion"])
@pytest.mark.parametrize("model", ["mlp", "batch_norm", "dropout"])
@pytest.mark.parametrize("other", [False, True])
def test_signed(model, optimizer, other, cases, unroll):
    case = cases.build(model, optimizer)
    trained = cases.train(case, tape={})
    objective = (cases.draw(5, *case.x.shape[1:], seed=9), case.y[:5]) if other else None
    found = memtools.loss_sensitivity(
        trained.tape, data_of(case), at=AT, signed=True, objective=objective
    )
    run = unroll(case, trained)
    assert_near(found, torch.stack([run.signed(t, objective) for t in AT]))


def test_signed_with_repeated_examples_and_a_sum(cases, unroll):
    batches = [batch[[0, 1, 1, -1]] for batch in cases.batches()]
    case = cases.build("mlp", "adam, all", reduction="sum", batches=batches)
    trained = cases.train(case, tape={})
    run = unroll(case, trained)
    found = memtools.loss_sensitivity(trained.tape, data_of(case), at=AT, signed=True)
    assert_near(found, torch.stack([run.signed(t) for t in AT]))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("model", ["relu", "batch_norm"])
def test_maps(model, part, cases, unroll):
    case = cases.build(model)
    trained = cases.train(case, tape={})
    examples = [4, 10, 0]
    found = memtools.sensitivity_maps(trained.tape, data_of(case), examples, at=AT, part=part)
    run = unroll(case, trained)
    expected = torch.stack([run.gradient(t, part)[examples] for t in AT])
    assert_near(found, expected)


def test_maps_of_the_loss_of_other_data(recorded, cases, unroll):
    case, trained = recorded
    other = cases.draw(5, 4, seed=9), case.y[:5]
    found = memtools.sensitivity_maps(
        trained.tape, data_of(case), torch.tensor([2, 3]), at=AT, objective=other
    )
    run = unroll(case, trained)
    assert_near(found, torch.stack([run.gradient(t, objective=other)[[2, 3]] for t in AT]))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_per_class(part, p, recorded, cases, unroll, unrolled):
    case, trained = recorded
    found = memtools.per_class_loss_sensitivity(trained.tape, data_of(case), at=AT, part=part, p=p)
    expected = unrolled.per_class(unroll(case, trained), AT, cases.CLASSES, part=part, p=p)
    assert_near(found, expected)


def test_per_class_of_a_batch_norm_model(cases, unroll, unrolled):
    case = cases.build("batch_norm", "adam, all")
    trained = cases.train(case, tape={"every": 3})
    found = memtools.per_class_loss_sensitivity(trained.tape, data_of(case))
    at = range(1, len(case.batches) + 1)
    assert_near(found, unrolled.per_class(unroll(case, trained), at, cases.CLASSES))


def test_classes_without_examples(recorded, cases):
    case, trained = recorded
    found = memtools.per_class_loss_sensitivity(
        trained.tape, data_of(case), num_classes=cases.CLASSES + 2
    )
    plain = memtools.per_class_loss_sensitivity(trained.tape, data_of(case))
    assert found.shape == (cases.CLASSES + 2, cases.CLASSES + 2)
    assert torch.equal(found[: cases.CLASSES, : cases.CLASSES], plain)
    assert found[:, cases.CLASSES :].isnan().all()
    assert (found[cases.CLASSES :, : cases.CLASSES] == 0).all()


@pytest.mark.parametrize(
    "form", [TensorDataset, Tensors, lambda x, y: list(zip(x, y.tolist(), strict=True))]
)
def test_forms_of_the_data(form, recorded):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, form(case.x, case.y))
    assert torch.equal(found, memtools.loss_sensitivity(trained.tape, data_of(case)))


# How it is computed.


@pytest.mark.parametrize("window", [0, 1, 3, 7])
@pytest.mark.parametrize(
    ("model", "optimizer"), [("batch_norm", "all of SGD"), ("mlp", "adam, all")]
)
def test_a_window_goes_back_so_many_updates(model, optimizer, window, cases, unroll, unrolled):
    case = cases.build(model, optimizer)
    trained = cases.train(case, tape={})
    at = [2, 8, 0, 5]
    runs = [unroll(case, trained, upto=t, cut=max(t - window, 0)) for t in at]
    for part in PARTS:
        found = memtools.loss_sensitivity(
            trained.tape, data_of(case), at=at, part=part, window=window
        )
        rows = [run.gradient(t, part) for run, t in zip(runs, at, strict=True)]
        expected = unrolled.norms(rows, 1)
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("window", [8, 100])
def test_a_window_over_everything_is_exact(window, recorded):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case), window=window)
    assert_near(found, memtools.loss_sensitivity(trained.tape, data_of(case)), 1e-12)


def test_windows_of_maps_and_classes(recorded, cases, unroll, unrolled):
    case, trained = recorded
    at, window = [2, 5], 2
    runs = [unroll(case, trained, upto=t, cut=t - window) for t in at]
    maps = memtools.sensitivity_maps(trained.tape, data_of(case), [1, 2], at=at, window=window)
    expected = [run.gradient(t)[[1, 2]] for run, t in zip(runs, at, strict=True)]
    assert_near(maps, torch.stack(expected))
    matrix = memtools.per_class_loss_sensitivity(trained.tape, data_of(case), at=at, window=window)
    each = [unrolled.per_class(r, [t], cases.CLASSES) for r, t in zip(runs, at, strict=True)]
    assert_near(matrix, torch.stack(each).mean(0))


@pytest.mark.parametrize("memory", [1, 20_000])
@pytest.mark.parametrize("model", ["cnn", "batch_norm", "dropout"])
def test_memory_changes_nothing(model, memory, cases):
    case = cases.build(model, "adam, all")
    tape, data = cases.train(case, tape={"every": 3}).tape, data_of(case)
    other = cases.draw(5, *case.x.shape[1:], seed=9), case.y[:5]

    def results(**settings):
        return [
            memtools.loss_sensitivity(tape, data, **settings),
            memtools.loss_sensitivity(tape, data, objective=other, signed=True, **settings),
            memtools.per_class_loss_sensitivity(tape, data, **settings),
            memtools.sensitivity_maps(tape, data, [3, 1], **settings),
        ]

    for found, expected in zip(results(memory=memory), results(), strict=True):
        assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("model", ["batch_norm", "dropout", "attention"])
def test_two_calls_agree_in_every_bit(model, cases):
    case = cases.build(model, "adam")
    tape = cases.train(case, tape={"every": 3}).tape
    first, second = (memtools.loss_sensitivity(tape, data_of(case)) for _ in range(2))
    assert torch.equal(first, second)


def test_progress_is_shown_on_standard_error_and_changes_nothing(recorded, capsys):
    case, trained = recorded
    found = memtools.loss_sensitivity(trained.tape, data_of(case), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err
    assert torch.equal(found, memtools.loss_sensitivity(trained.tape, data_of(case)))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["mlp", "cnn", "batch_norm"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_float32(model, optimizer, cases, oracles, unroll, unrolled):
    """A bound on the roundings of every update, each of which moves the rest a little.

    Forward and backward pass of an example make ``rounding_tolerance``; an update does so for
    itself, the sweep back for its second derivative (twice the work).
    """
    case = cases.build(model, optimizer, batches=cases.batches(updates=4))
    case.model.float()
    single = case.x.float()
    exact = cases.build(model, optimizer, batches=case.batches)
    exact.x = single.double()
    exact.model.load_state_dict(case.model.double().state_dict())
    case.model.float()
    case.x = single
    trained = cases.train(case, tape={})
    found = memtools.loss_sensitivity(trained.tape, data_of(case))
    expected = unrolled.loss_sensitivity(
        unroll(exact, cases.train(exact)), range(1, len(case.batches) + 1)
    )
    assert found.dtype == torch.float32
    tolerance = oracles.rounding_tolerance(
        exact.model.eval(), exact.x, exact.y, cases.cross_entropy, torch.float32
    )
    assert_near(found.double(), expected, 3 * (len(case.batches) + 1) * tolerance)


def many_updates_of_adam_in_float32(cases, model, every):
    case = cases.build(model, "adam", batches=cases.batches(updates=40))
    case.model.float()
    case.x = case.x.float()
    tape = cases.train(case, tape={"every": every}).tape
    return memtools.loss_sensitivity(tape, data_of(case), at=[40, 20])


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("model", ["relu", "cnn", "dropout", "attention"])
def test_many_updates_of_adam_in_float32(model, every, cases):
    assert many_updates_of_adam_in_float32(cases, model, every).isfinite().all()


def test_a_bias_before_batch_norm_has_no_gradient_but_roundings_which_adam_blows_up(cases):
    """With all weights kept they do no harm; recomputed ones may drift away, which is noticed."""
    exact = many_updates_of_adam_in_float32(cases, "batch_norm", 1)
    assert exact.isfinite().all()
    found, refusal = exact, ""
    try:
        found = many_updates_of_adam_in_float32(cases, "batch_norm", 100)
    except ValueError as error:
        refusal = str(error)
    assert "smaller every" in refusal or not refusal
    assert_near(found, exact, 1e-2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_as_frameworks_validate(mode, recorded):
    case, trained = recorded
    functions = (
        memtools.loss_sensitivity,
        partial(memtools.loss_sensitivity, sketch=8),
        partial(memtools.loss_sensitivity, signed=True),
        memtools.per_class_loss_sensitivity,
        partial(memtools.sensitivity_maps, examples=[3, 1]),
    )
    expected = [function(trained.tape, data_of(case)) for function in functions]
    with mode():
        made_here = (case.x * 1, case.y * 1)
        for data in (data_of(case), made_here):
            found = [function(trained.tape, data) for function in functions]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
