"""Recording: what it keeps, that training does not notice, and what it refuses."""

import copy
import json
import random
import struct

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.testing._internal.distributed.fake_pg import FakeStore

import memtools
from memtools.data import Tensors
from memtools.training import Callback, Trainer

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 2, 1, 0])

UPDATE = r"update \d"
"""In messages about what is wrong with every update: any of them may be named."""


def sensitivity(case, trained, **options):
    return memtools.loss_sensitivity(trained.tape, (case.x, case.y), **options)


def hooks_of(model, optimizer):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_modules = [getattr(module, kind) for module in model.modules() for kind in kinds]
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    of_weights = [getattr(p, kind, None) for p in model.parameters() for kind in kinds]
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    of_optimizer = [getattr(optimizer, kind, None) for kind in kinds]
    return sum(len(hooks or ()) for hooks in of_modules + of_weights + of_optimizer)


def global_hooks():
    module = nn.modules.module
    names = [name for name in vars(module) if name.startswith("_global_") and "hooks" in name]
    return sum(len(hooks) for name in names if isinstance(hooks := getattr(module, name), dict))


def random_states():
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state(legacy=False)["state"]),  # noqa: NPY002
        random.getstate(),
    )


def small(*, momentum=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, SGD(model.parameters(), lr=0.1, momentum=momentum)


def step(model, optimizer, batch, tape=None, y=Y):
    optimizer.zero_grad()
    F.cross_entropy(model(X[batch]), y[batch]).backward()
    if tape is not None:
        tape.record(batch)
    optimizer.step()


# What it is.


def test_its_length_is_the_number_of_updates(cases):
    case = cases.build()
    assert len(cases.train(case, tape={}).tape) == len(case.batches)
    assert len(memtools.TrainingTape(*small())) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_spaced_times_are_even_and_end_with_the_last(count, cases):
    tape = cases.train(cases.build(), tape={}).tape
    times = tape.spaced(count)
    assert len(times) == min(count, len(tape))
    assert times[-1] == len(tape)
    gaps = np.diff([0, *times])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("count", [0, -1])
def test_spaced_needs_a_time(count, cases):
    with pytest.raises(ValueError, match="count"):
        cases.train(cases.build(), tape={}).tape.spaced(count)


@pytest.mark.parametrize("form", [list, tuple, torch.Tensor.numpy, torch.Tensor.int])
def test_forms_of_indices(form):
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    indices = torch.arange(6)
    tape.record(form(indices.tolist() if form in (list, tuple) else indices))
    optimizer.step()
    assert memtools.loss_sensitivity(tape, (X, Y)).shape == (1, 6)


def test_more_can_be_recorded_after_a_call(cases):
    model, optimizer = small(momentum=0.9)
    tape = memtools.TrainingTape(model, optimizer)
    for batch in (torch.tensor([0, 1, 2]), torch.tensor([3, 4])):
        step(model, optimizer, batch, tape)
    early = memtools.loss_sensitivity(tape, (X, Y))
    step(model, optimizer, torch.tensor([5, 0]), tape)
    late = memtools.loss_sensitivity(tape, (X, Y))
    torch.testing.assert_close(late[:2], early, rtol=1e-12, atol=0)
    assert len(late) == 3


def test_the_model_may_go_on_without_the_tape(cases):
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)
    step(model, optimizer, torch.arange(6), tape)
    expected = memtools.loss_sensitivity(tape, (X, Y))
    tape.close()
    for _ in range(2):
        step(model, optimizer, torch.arange(6))
    assert torch.equal(memtools.loss_sensitivity(tape, (X, Y)), expected)


def test_gradients_that_are_added_up_over_parts_of_a_batch(cases):
    results = []
    for parts in (1, 2):
        model, optimizer = small(momentum=0.9)
        tape = memtools.TrainingTape(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            for part in torch.arange(6).chunk(parts):
                (F.cross_entropy(model(X[part]), Y[part]) / parts).backward()
            tape.record(torch.arange(6))
            optimizer.step()
        results.append(memtools.loss_sensitivity(tape, (X, Y)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


# Training does not notice.


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all"])
def test_weights_stay_the_same_in_every_bit(network_name, optimizer, every, cases):
    assert_same_weights(cases.build(network_name, optimizer), every, cases)


@pytest.mark.parametrize("every", [1, 3])
def test_weights_stay_the_same_under_every_optimizer(optimizer_name, every, cases):
    assert_same_weights(cases.build("mlp", optimizer_name), every, cases)


def assert_same_weights(case, every, cases):
    plain = cases.train(case)
    taped = cases.train(case, tape={"every": every})
    states = (copy.deepcopy(trained.model).state_dict() for trained in (plain, taped))
    for expected, found in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(found, expected)


def test_recording_and_measuring_leave_everything_as_it_was(tmp_path, cases):
    case = cases.build("dropout", "adam")
    trained = cases.train(case, tape={"store": tmp_path})
    model = trained.model
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    inputs, states = case.x.clone(), random_states()
    sensitivity(case, trained)
    memtools.per_class_loss_sensitivity(trained.tape, (case.x, case.y))
    memtools.sensitivity_maps(trained.tape, (case.x, case.y), [0])
    assert random_states() == states
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(case.x, inputs)
    assert not case.x.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name])
    for p, gradient in zip(model.parameters(), before[1], strict=True):
        assert torch.equal(p.grad, gradient)


def test_a_failed_call_leaves_everything_as_it_was(cases):
    case = cases.build("batch_norm", "adam")
    trained = cases.train(case, tape={})
    before, states = copy.deepcopy(trained.model.state_dict()), random_states()
    with pytest.raises(ValueError, match=UPDATE):
        memtools.loss_sensitivity(trained.tape, (case.x, case.y.flip(0)))
    assert random_states() == states
    assert trained.model.training
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_measuring_works_without_gradients_around_it(around, cases):
    case = cases.build("batch_norm")
    trained = cases.train(case, tape={})
    expected = sensitivity(case, trained)
    with around():
        found = sensitivity(case, trained)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_no_hook_is_left_after_close():
    model, optimizer = small()
    before = hooks_of(model, optimizer), global_hooks()
    tape = memtools.TrainingTape(model, optimizer)
    step(model, optimizer, torch.arange(6), tape)
    tape.close()
    tape.close()  # as often as one likes
    assert (hooks_of(model, optimizer), global_hooks()) == before


def test_a_closed_tape_records_no_more():
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)
    step(model, optimizer, torch.arange(6), tape)
    tape.close()
    with pytest.raises((ValueError, RuntimeError), match=r"closed|update 2"):
        step(model, optimizer, torch.arange(6), tape)


# On disk.


def readable(file):
    """Whether a file holds nothing but numbers and text."""
    if file.suffix in (".npy", ".npz"):
        np.load(file, allow_pickle=False)
        return True
    if file.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", file.open("rb").read(8))
        return bool(json.loads(file.read_bytes()[8 : 8 + length]))
    return file.suffix == ".json" and json.loads(file.read_text()) is not None


def test_files_hold_no_pickles(tmp_path, cases):
    folder = tmp_path / "new" / "tape"
    case = cases.build("batch_norm", "adam")
    trained = cases.train(case, tape={"store": folder})
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) >= len(case.batches) * sum(
        p.nbytes for p in trained.model.parameters()
    )
    assert all(readable(file) for file in files)


def test_a_folder_may_be_text(tmp_path, cases):
    case = cases.build()
    trained = cases.train(case, tape={"store": str(tmp_path)})
    assert list(tmp_path.iterdir())
    assert torch.equal(sensitivity(case, trained), sensitivity(case, cases.train(case, tape={})))


def test_fewer_weights_kept_are_less_on_disk(tmp_path, cases):
    sizes = []
    for every in (1, 4):
        folder = tmp_path / str(every)
        cases.train(cases.build(), tape={"store": folder, "every": every})
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    assert sizes[1] < sizes[0]


def test_a_file_that_is_gone_is_named(tmp_path, cases):
    case = cases.build()
    trained = cases.train(case, tape={"store": tmp_path})
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        sensitivity(case, trained)


# In the trainer.


class Batches(Callback):
    """Keeps which examples each update used."""

    def __init__(self):
        self.indices = []

    def before_step(self, run, batch):
        self.indices.append(batch.indices)


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
@pytest.mark.parametrize("options", [{}, {"every": 3}])
def test_the_callback_records_as_an_own_loop_does(model, options, cases):
    case = cases.build(model, "all of SGD", scheduler=None)
    recorder, seen = memtools.training.TapeRecorder(**options), Batches()
    settings = {"epochs": 3, "batch_size": 4, "precision": "float64", "device": "cpu"}
    Trainer(
        copy.deepcopy(case.model),
        optimizer=case.optimizer,
        callbacks=[recorder, seen],
        **settings,
    ).fit(Tensors(case.x, case.y))
    case.batches = seen.indices
    own = sensitivity(case, cases.train(case, tape=options))
    assert recorder.tape is not None
    assert len(recorder.tape) == len(seen.indices)
    found = memtools.loss_sensitivity(recorder.tape, Tensors(case.x, case.y))
    # The trainer adds up the losses and divides: another rounding than that of a mean.
    torch.testing.assert_close(found, own, rtol=1e-10, atol=0)


def test_the_callback_records_dropout_and_keeps_on_disk(tmp_path, cases):
    case = cases.build("dropout", "adam")
    recorder = memtools.training.TapeRecorder(every=2, store=tmp_path)
    settings = {"epochs": 2, "batch_size": 4, "precision": "float64", "device": "cpu"}
    trainer = Trainer(
        copy.deepcopy(case.model), optimizer=case.optimizer, callbacks=[recorder], **settings
    )
    trainer.fit(Tensors(case.x, case.y), validation=Tensors(case.x, case.y))
    assert recorder.tape is not None
    found = memtools.loss_sensitivity(recorder.tape, (case.x, case.y))  # replay is checked
    assert found.isfinite().all()
    assert list(tmp_path.iterdir())


def test_the_callback_changes_no_weight(cases):
    case, ends = cases.build("dropout", "adam"), []
    for callbacks in ([], [memtools.training.TapeRecorder()]):
        model = copy.deepcopy(case.model)
        settings = {"epochs": 2, "batch_size": 4, "device": "cpu", "callbacks": callbacks}
        Trainer(model, optimizer=case.optimizer, **settings).fit(Tensors(case.x, case.y))
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*ends)


# What it refuses.


@pytest.fixture(params=[1, 3], ids=["all kept", "every third"])
def every(request):
    return request.param


def refuse(case, cases, match, *, every=1, between=None, data=None):
    """Recording or measuring says so, with the number of the update."""

    def record_and_measure():
        trained = cases.train(case, tape={"every": every}, between=between)
        memtools.loss_sensitivity(trained.tape, data or (case.x, case.y))

    with pytest.raises(ValueError, match=match):
        record_and_measure()


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_data_in_another_order(model, every, cases):
    case = cases.build(model)
    refuse(case, cases, UPDATE, every=every, data=(case.x.flip(0), case.y.flip(0)))


def test_other_labels(every, cases):
    case = cases.build()
    refuse(case, cases, UPDATE, every=every, data=(case.x, (case.y + 1) % cases.CLASSES))


def test_one_other_label_is_noticed_where_it_is_used(every, cases):
    case = cases.build(batches=[torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])])
    labels = case.y.clone()
    labels[4] = (labels[4] + 1) % cases.CLASSES
    refuse(case, cases, "update 3", every=every, data=(case.x, labels))


def test_one_input_that_moved_a_little(every, cases):
    case = cases.build(batches=[torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5])])
    x = case.x.clone()
    x[4, 0] += 1e-3
    refuse(case, cases, "update 3", every=every, data=(x, case.y))


def test_data_that_are_too_few(cases):
    case = cases.build(batches=[torch.tensor([0, 1]), torch.tensor([9])])
    refuse(case, cases, "update 2", data=(case.x[:5], case.y[:5]))


def test_weights_changed_between_the_updates(every, cases):
    def change(model, optimizer, number):
        if number == 3:
            model[0].weight.data.mul_(0.9)

    refuse(cases.build(), cases, r"update [23]\b", every=every, between=change)


def test_one_weight_changed_by_a_little(every, cases):
    def change(model, optimizer, number):
        if number == 3:
            model[2].bias.data[0] += 1e-6

    refuse(cases.build(), cases, r"update [23]\b", every=every, between=change)


def test_running_statistics_changed_between_the_updates(every, cases):
    def change(model, optimizer, number):
        if number == 3:
            model[1].running_mean += 1

    refuse(cases.build("batch_norm"), cases, r"update [23]\b", every=every, between=change)


def test_a_forward_pass_in_train_mode_that_is_no_update(every, cases):
    case = cases.build("batch_norm")

    def forward(model, optimizer, number):
        if number == 3:
            with torch.no_grad():
                model(case.x)

    refuse(case, cases, r"update [23]\b", every=every, between=forward)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_state_of_the_optimizer_changed_between_the_updates(optimizer, every, cases):
    def change(model, optimizer, number):
        if number == 4:
            for state in optimizer.state.values():
                state.get("momentum_buffer", state.get("exp_avg")).mul_(0.5)

    refuse(cases.build("mlp", optimizer), cases, r"update [34]\b", every=every, between=change)


@pytest.mark.parametrize("scale", ["clip", "scale"])
def test_gradients_changed_before_record(scale, every):
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer, every=every)

    def train():
        for number in range(1, 5):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            if number == 3 and scale == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            elif number == 3:
                for p in model.parameters():
                    assert p.grad is not None
                    p.grad *= 1.1
            tape.record(torch.arange(6))
            optimizer.step()
        memtools.loss_sensitivity(tape, (X, Y))

    with pytest.raises(ValueError, match=r"update 3\b"):
        train()


@pytest.mark.parametrize(("used", "said"), [("sum", "mean"), ("mean", "sum")])
def test_a_loss_that_joins_in_another_way(used, said, every, cases):
    case = cases.build(reduction=used)
    case.optimizer = cases.of(SGD, lr=0.01)
    trained = cases.train(case, tape={"reduction": said, "every": every})
    with pytest.raises(ValueError, match=UPDATE) as caught:
        sensitivity(case, trained)
    assert "reduction" in str(caught.value)


def test_another_loss(every, cases):
    case = cases.build(loss_fn=lambda logits, y: F.cross_entropy(2 * logits, y, reduction="none"))
    trained = cases.train(case, tape={"loss_fn": None, "every": every})
    with pytest.raises(ValueError, match=UPDATE):
        sensitivity(case, trained)


def test_an_averaged_loss(cases):
    case = cases.build()
    with pytest.raises(ValueError, match="loss_fn"):
        sensitivity(case, cases.train(case, tape={"loss_fn": F.cross_entropy}))


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_an_update_that_was_not_recorded(optimizer, every):
    model, _ = small()
    optimizer = optimizer(model.parameters(), lr=0.05)
    tape = memtools.TrainingTape(model, optimizer, every=every)

    def train():
        for number in range(1, 6):
            step(model, optimizer, torch.arange(6), None if number == 3 else tape)
        memtools.loss_sensitivity(tape, (X, Y))

    with pytest.raises(ValueError, match=r"update [23]\b"):
        train()


def test_an_update_recorded_twice(every):
    model, optimizer = small(momentum=0.9)
    tape = memtools.TrainingTape(model, optimizer, every=every)

    def train():
        for number in range(1, 5):
            if number == 3:
                optimizer.zero_grad()
                F.cross_entropy(model(X), Y).backward()
                tape.record(torch.arange(6))
            step(model, optimizer, torch.arange(6), tape)
        memtools.loss_sensitivity(tape, (X, Y))

    with pytest.raises((ValueError, RuntimeError), match=r"update [34]\b"):
        train()


def test_an_own_update_function_that_is_not_the_optimizers(every, cases):
    case = cases.build("mlp", "lion")

    def other(weights, gradients, state, settings):
        slower = {name: {**o, "lr": o["lr"] / 2} for name, o in settings.items()}
        return cases.smooth_lion(weights, gradients, state, slower)

    trained = cases.train(case, tape={"update": other, "every": every})
    with pytest.raises(ValueError, match=UPDATE):
        sensitivity(case, trained)


def test_noise_that_torch_does_not_draw(every):
    class Noisy(nn.Linear):
        def forward(self, input):
            noise = np.random.default_rng().normal(size=input.shape)
            return super().forward(input + torch.from_numpy(noise))

    model = nn.Sequential(Noisy(4, 3)).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    tape = memtools.TrainingTape(model, optimizer, every=every)
    step(model, optimizer, torch.arange(6), tape)
    with pytest.raises(ValueError, match="update 1"):
        memtools.loss_sensitivity(tape, (X, Y))


@pytest.fixture
def two_processes():
    """This process among two, the other of which is not there."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
def test_a_training_by_several_processes():
    model, optimizer = small()

    def train():
        tape = memtools.TrainingTape(model, optimizer)
        step(model, optimizer, torch.arange(6), tape)

    with pytest.raises(ValueError, match="processes"):
        train()


def test_a_wrapper_for_several_processes_around_the_model_of_one(process_group):
    results = []
    for wrap in (lambda model: model, nn.parallel.DistributedDataParallel):
        model, optimizer = small()
        wrapped = wrap(model)
        tape = memtools.TrainingTape(wrapped, optimizer)
        for _ in range(2):
            step(wrapped, optimizer, torch.arange(6), tape)
        results.append(memtools.loss_sensitivity(tape, (X, Y)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_autocast():
    model, _ = small()
    model.float()
    optimizer = SGD(model.parameters(), lr=0.1)
    tape = memtools.TrainingTape(model, optimizer)

    def train():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(X.float()), Y)
        loss.backward()
        tape.record(torch.arange(6))
        optimizer.step()
        memtools.loss_sensitivity(tape, (X.float(), Y))

    with pytest.raises(ValueError, match="autocast"):
        train()


def test_inputs_that_are_no_real_numbers():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    tape = memtools.TrainingTape(model, optimizer)
    tokens = torch.arange(12).remainder(5).view(6, 2)
    F.cross_entropy(model(tokens), Y).backward()
    tape.record(torch.arange(6))
    optimizer.step()
    with pytest.raises(ValueError, match="float"):
        memtools.loss_sensitivity(tape, (tokens, Y))


class Subclass(SGD):
    """Could do anything in its step."""


@pytest.mark.parametrize("optimizer", [RMSprop, LBFGS, Subclass])
def test_optimizers_that_are_not_known(optimizer):
    model, _ = small()
    with pytest.raises((TypeError, ValueError), match=f"{optimizer.__name__}.*update"):
        memtools.TrainingTape(model, optimizer(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"reduction": "none"}, "reduction"),
        ({"store": 3}, "store"),
    ],
)
def test_bad_options_of_a_tape(options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        memtools.TrainingTape(*small(), **options)


@pytest.mark.parametrize(
    "indices", [[], [[0, 1]], [0.5], torch.tensor([True]), torch.empty(0, dtype=torch.long)]
)
def test_bad_indices(indices):
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)
    F.cross_entropy(model(X), Y).backward()
    with pytest.raises((TypeError, ValueError), match="indices"):
        tape.record(indices)


def test_indices_below_zero():
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)

    def train():
        step(model, optimizer, torch.tensor([0, -1]), tape)
        memtools.loss_sensitivity(tape, (X, Y))

    with pytest.raises(ValueError, match="update 1"):
        train()


def test_more_indices_than_examples():
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)

    def train():
        F.cross_entropy(model(X[:4]), Y[:4]).backward()
        tape.record(torch.arange(6))
        optimizer.step()
        memtools.loss_sensitivity(tape, (X, Y))

    with pytest.raises(ValueError, match="update 1"):
        train()


def test_record_before_backward():
    model, optimizer = small()
    tape = memtools.TrainingTape(model, optimizer)
    with pytest.raises((ValueError, RuntimeError), match=r"backward|gradient"):
        tape.record([0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"at": [9]}, r"^at .*8"),
        ({"at": [-1]}, r"^at .*8"),
        ({"at": []}, "^at "),
        ({"at": [0.5]}, "^at "),
        ({"part": "both"}, "part"),
        ({"p": 3}, "p "),
        ({"p": 0}, "p "),
        ({"window": -1}, "window"),
        ({"window": 1.5}, "window"),
        ({"memory": 0}, "memory"),
        ({"signed": True, "part": "direct"}, "signed"),
    ],
)
def test_bad_options_of_a_sensitivity(options, match, cases):
    case = cases.build()
    with pytest.raises((TypeError, ValueError), match=match):
        sensitivity(case, cases.train(case, tape={}), **options)


@pytest.mark.parametrize("examples", [[], [11], [-1], [0.5]])
def test_bad_examples_of_maps(examples, cases):
    case = cases.build()
    tape = cases.train(case, tape={}).tape
    with pytest.raises((TypeError, ValueError), match="examples"):
        memtools.sensitivity_maps(tape, (case.x, case.y), examples)


@pytest.mark.parametrize("classes", [0, 2])
def test_bad_numbers_of_classes(classes, cases):
    case = cases.build()
    tape = cases.train(case, tape={}).tape
    with pytest.raises(ValueError, match="classes"):
        memtools.per_class_loss_sensitivity(tape, (case.x, case.y), num_classes=classes)


def test_an_empty_tape():
    tape = memtools.TrainingTape(*small())
    with pytest.raises(ValueError, match="no update"):
        memtools.loss_sensitivity(tape, (X, Y))


def test_an_objective_without_examples(cases):
    case = cases.build()
    with pytest.raises(ValueError, match="empty"):
        sensitivity(case, cases.train(case, tape={}), objective=(case.x[:0], case.y[:0]))


def test_a_loader_in_place_of_data(cases):
    case = cases.build()
    loader = torch.utils.data.DataLoader(Tensors(case.x, case.y))
    with pytest.raises(TypeError, match="DataLoader"):
        memtools.loss_sensitivity(cases.train(case, tape={}).tape, loader)


@pytest.mark.parametrize("is_given", ["the compiled one", "the model in it"])
def test_a_compiled_model(is_given):
    """With dropout, whose numbers a replay has to draw as the training did."""
    torch.manual_seed(0)
    model = memtools.models.MLP((4,), 3, width=6, dropout=0.2)
    compiled = torch.compile(model, backend="aot_eager")
    assert isinstance(compiled, nn.Module)
    optimizer = SGD(model.parameters(), lr=0.1)
    tape = memtools.TrainingTape(compiled if is_given == "the compiled one" else model, optimizer)
    inputs, targets = torch.randn(20, 4), torch.randint(3, (20,))
    for indices in torch.randperm(20).split(5):
        optimizer.zero_grad()
        F.cross_entropy(compiled(inputs[indices]), targets[indices]).backward()
        tape.record(indices)
        optimizer.step()
    assert (memtools.loss_sensitivity(tape, (inputs, targets), at=4) > 0).all()
    tape.close()
    assert not model._forward_pre_hooks
