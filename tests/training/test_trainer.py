"""The trainer: equal to a plain loop, reproducible, resumable after any kill."""

import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

from memtools import seeds
from memtools.data import Tensors, random_inputs
from memtools.models import MLP, SmallAlexNet
from memtools.training import Callback, Trainer, evaluate, resolve_device

N, FEATURES, CLASSES = 50, 6, 3
BATCH = 16  # the last of four batches holds two examples


def data(n=N, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Tensors(
        torch.randn(n, FEATURES, generator=draw),
        torch.randint(CLASSES, (n,), generator=draw),
    )


class Pairs:
    """The same data as items ``(x, y)``, which go through a ``DataLoader``."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        return self.tensors.inputs[index], int(self.tensors.targets[index])


class Augmented(Pairs):
    """Items that differ from one reading to the next."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(FEATURES), y


def network(**settings):
    with seeds.seeded("weights"):
        return MLP((FEATURES,), CLASSES, width=8, **settings)


def momentum(weights):
    return SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-3)


def halving(optimizer):
    return StepLR(optimizer, 2, 0.5)


def trainer(model=None, **settings):
    settings = {"epochs": 3, "batch_size": BATCH, "device": "cpu", "optimizer": momentum} | settings
    return Trainer(network() if model is None else model, **settings)


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def trained(model=None, train=None, **settings):
    t = trainer(model, **settings)
    t.fit(data() if train is None else train)
    return weights_of(t.model)


# The loop


def test_equals_a_plain_loop_bit_for_bit():
    train, held_out = data(), data(20, seed=1)
    model = network(dropout=0.3)
    plain = deepcopy(model)
    results = trainer(model, scheduler=halving, epochs=5, seed=7).fit(train, held_out)

    optimizer = momentum(plain.parameters())
    schedule = halving(optimizer)
    for epoch in range(1, 6):
        order = torch.randperm(N, generator=seeds.generator(7, "order", epoch))
        torch.manual_seed(seeds.derive_seed(7, "noise", epoch, 0))
        plain.train()
        losses = []
        for start in range(0, N, BATCH):
            indices = order[start : start + BATCH]
            loss = F.cross_entropy(plain(train.inputs[indices]), train.targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append((float(loss.detach()), len(indices)))
        result = results[epoch - 1]
        assert result.learning_rate == optimizer.param_groups[0]["lr"]
        schedule.step()
        plain.eval()
        with torch.no_grad():
            logits = plain(held_out.inputs)
            right = (plain(train.inputs).argmax(1) == train.targets).double().mean()
        assert (result.epoch, result.updates) == (epoch, 4 * epoch)
        assert result.loss == pytest.approx(sum(v * n for v, n in losses) / N, rel=1e-6)
        assert result.train_accuracy == float(right)
        expected = float(F.cross_entropy(logits, held_out.targets))
        assert result.validation_loss == pytest.approx(expected, rel=1e-6)
        accuracy = float((logits.argmax(1) == held_out.targets).double().mean())
        assert result.validation_accuracy == pytest.approx(accuracy, rel=1e-12)
    assert len(results) == 5
    assert torch.equal(weights_of(model), weights_of(plain))


def test_plain_sgd_with_001_is_the_default():
    model = network()
    plain = deepcopy(model)
    Trainer(model, epochs=1, batch_size=N, device="cpu").fit(data())
    order = torch.randperm(N, generator=seeds.generator(0, "order", 1))
    F.cross_entropy(plain(data().inputs[order]), data().targets[order]).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert q.grad is not None
        assert torch.equal(p, q.detach().add(q.grad, alpha=-0.01))


def test_same_seed_same_weights_and_another_seed_others():
    first, again, other = (trained(seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seed_rules_dropout_too():
    first, again, other = (
        trained(network(dropout=0.5), batch_size=N, epochs=1, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    # One batch of all examples: the order only moves the last bits.
    assert float((first - other).abs().max()) > 1e-4


def test_global_random_state_is_left_and_does_not_matter():
    def states():
        numpy = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy, random.getstate()

    before = states()
    first = trained(network(dropout=0.5))
    assert states() == before
    torch.randn(5)
    assert torch.equal(trained(network(dropout=0.5)), first)


def test_model_in_eval_mode_is_trained_in_train_mode():
    model = network(dropout=0.5).eval()
    assert torch.equal(trained(model), trained(network(dropout=0.5)))


def test_frozen_weights_stay():
    model = network()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    trainer(model).fit(data())
    assert torch.equal(frozen, before)
    assert frozen.grad is None


def test_evaluation_in_between_changes_nothing():
    model = SmallAlexNet((1, 8, 8), CLASSES, width=4)
    images = Tensors(torch.randn(24, 1, 8, 8), torch.arange(24) % CLASSES)
    twin = deepcopy(model)
    trainer(model, batch_size=8).fit(images, images)
    trainer(twin, batch_size=8).fit(images)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert int(model.state_dict()["layers.1.num_batches_tracked"]) == 9


# Stopping


def test_stops_at_the_training_accuracy():
    goal = 0.6
    results = trainer(epochs=200, stop_at_train_accuracy=goal).fit(data())
    assert results[-1].train_accuracy >= goal
    assert all(r.train_accuracy < goal for r in results[:-1])
    assert len(results) < 200


def test_stops_when_told_to():
    seen = []

    def third(result):
        seen.append(result)
        return result.epoch == 3

    results = trainer(epochs=10, stop_when=third).fit(data())
    assert len(results) == 3
    assert seen == results


# Callbacks


class Diary(Callback):
    """Writes down what it saw, and counts across a resume."""

    def __init__(self):
        self.events = []
        self.steps = torch.zeros((), dtype=torch.long)
        self.seen = []

    def on_start(self, run):
        self.events.append(("start", run.updates, len(run.results)))

    def before_step(self, run, batch):
        self.events.append(("step", run.updates, batch.total))
        assert all(p.grad is not None for p in run.model.parameters())
        assert torch.equal(batch.inputs, run.train.inputs[batch.indices])
        assert torch.equal(batch.targets, run.train.targets[batch.indices])
        assert batch.counts
        assert run.model.training
        self.seen.append(batch.indices)
        self.steps += 1

    def on_epoch_end(self, run, result):
        assert run.results[-1] is result
        self.events.append(("end", run.updates, result.epoch))

    def state_dict(self):
        return {"steps": self.steps, "events": [list(e) for e in self.events]}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        self.events = [tuple(e) for e in state["events"]]


def test_callbacks_see_every_step_and_epoch():
    diary = Diary()
    trainer(epochs=2, callbacks=[diary]).fit(data())
    sizes = [16, 16, 16, 2]
    assert diary.events == [
        ("start", 0, 0),
        *(("step", i, size) for i, size in enumerate(sizes)),
        ("end", 4, 1),
        *(("step", 4 + i, size) for i, size in enumerate(sizes)),
        ("end", 8, 2),
    ]
    for epoch in (diary.seen[:4], diary.seen[4:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(N))
    assert not torch.equal(torch.cat(diary.seen[:4]), torch.cat(diary.seen[4:]))


def test_gradients_before_the_step_are_those_of_the_batch():
    train = data()

    class Check(Callback):
        checked = 0

        def before_step(self, run, batch):
            twin = deepcopy(run.model)
            twin.zero_grad()
            F.cross_entropy(twin(batch.inputs), batch.targets).backward()
            for p, q in zip(run.model.parameters(), twin.parameters(), strict=True):
                assert p.grad is not None
                assert q.grad is not None
                assert torch.equal(p.grad, q.grad)
            self.checked += 1

    check = Check()
    trainer(epochs=2, callbacks=[check]).fit(train)
    assert check.checked == 8


# Precision


def test_double_precision_trains_in_double():
    model = network()
    trainer(model, precision="float64").fit(data())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    # 12 steps of rounding at 2^-24, in a network whose values and gradients are of order one.
    torch.testing.assert_close(weights_of(model).float(), trained(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_the_weights_in_single(precision):
    seen = set()

    class Look(Callback):
        def on_start(self, run):
            next(m for m in run.model.modules() if isinstance(m, nn.Linear)).register_forward_hook(
                lambda module, args, output: seen.add((module.training, output.dtype))
            )

    model = network()
    results = trainer(model, precision=precision, epochs=10, callbacks=[Look()]).fit(data())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (True, getattr(torch, precision)) in seen
    assert results[-1].loss < results[0].loss
    assert not torch.equal(weights_of(model), trained(epochs=10))


# Data that are no tensors


@pytest.mark.parametrize("workers", [0, 2])
def test_any_data_set_trains_to_the_same_weights(workers):
    train = Pairs(data())
    model = network(dropout=0.3)
    results = trainer(model, workers=workers).fit(train, train)
    assert torch.equal(weights_of(model), trained(network(dropout=0.3)))
    assert results == trainer(network(dropout=0.3)).fit(data(), data())


def test_noisy_data_train_with_their_own_labels():
    noisy = random_inputs(data(), 0.5)
    inputs = torch.stack([noisy[i][0] for i in range(N)])
    assert torch.equal(trained(train=noisy), trained(train=Tensors(inputs, data().targets)))


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation_follows_from_the_seed(workers):
    def run(seed):
        return trained(train=Augmented(data()), seed=seed, workers=workers, epochs=2)

    first, again, plain = run(0), run(0), trained(epochs=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"precision": "half"}, "precision must be .* got 'half'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        trainer(**settings)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"device must be one of auto, cpu.* got '{device}'"):
        trainer(device=device).fit(data())
    assert resolve_device("cpu") == torch.device("cpu")


def test_empty_data_are_refused():
    with pytest.raises(ValueError, match="train is empty"):
        trainer().fit(data(0))
    with pytest.raises(ValueError, match="dataset is empty"):
        evaluate(network(), data(0))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_averaged_loss_is_refused(reduction):
    with pytest.raises(ValueError, match='reduction="none"'):
        trainer(loss_fn=nn.CrossEntropyLoss(reduction=reduction)).fit(data())


def test_other_losses_are_used():
    def squared(logits, targets):
        return (logits - F.one_hot(targets, CLASSES)).square().sum(1)

    model = network()
    results = trainer(model, loss_fn=squared, epochs=1, batch_size=N).fit(data(), data())
    start = float(squared(network()(data().inputs), data().targets).mean().detach())
    assert results[0].loss == pytest.approx(start, rel=1e-6)
    after = float(squared(model(data().inputs), data().targets).mean().detach())
    assert results[0].validation_loss == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("bad", [CLASSES, -1, -100])
@pytest.mark.parametrize("position", range(0, N, 7))
def test_targets_out_of_range_are_refused_before_a_step(bad, position):
    train = data()
    train.targets[position] = bad
    model = network()
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2 for 3 classes"):
        trainer(model).fit(train)
    assert torch.equal(weights_of(model), weights_of(network()))


@pytest.mark.parametrize("batch_size", [BATCH, N])
@pytest.mark.parametrize("lr", [1e18, 1e38])
def test_divergence_is_an_error(batch_size, lr):
    with pytest.raises(FloatingPointError, match=r"divergence|diverged"):
        trainer(optimizer=lambda p: SGD(p, lr=lr), batch_size=batch_size).fit(data())


def test_global_state_is_put_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(FloatingPointError):
        trainer(optimizer=lambda p: SGD(p, lr=1e38)).fit(data())
    assert torch.equal(torch.get_rng_state(), state)


# Evaluation


def test_evaluation_does_not_depend_on_its_batches():
    model = network(dropout=0.5).double()
    wanted = evaluate(model, data())
    assert 0 < wanted.accuracy < 1
    for batch_size in (1, 7, N):
        got = evaluate(model, Pairs(data()), batch_size=batch_size)
        assert got.accuracy == wanted.accuracy
        # Sums of 50 float64 losses in another order.
        assert got.loss == pytest.approx(wanted.loss, rel=50 * 2**-52)
    assert model.training


def test_evaluation_of_logits_that_are_not_finite_is_an_error():
    train = data()
    train.inputs[3] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        evaluate(network(), train)


def test_model_without_weights_can_be_evaluated():
    assert evaluate(nn.Identity(), Tensors(torch.eye(4), torch.arange(4))).accuracy == 1.0


# Checkpoints


def resumable(path, epochs=6, **settings: Any):
    return trainer(
        network(dropout=0.4),
        epochs=epochs,
        checkpoint=path,
        **{"scheduler": lambda o: StepLR(o, 2, 0.5), "callbacks": [Diary()]} | settings,
    )


def diary_of(t) -> Any:
    return t.callbacks[0]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_run_is_the_undisturbed_one(stop, tmp_path):
    whole = resumable(None)
    expected = whole.fit(data(), data(20, 1))
    resumable(tmp_path / "new" / "state.pt", stop).fit(data(), data(20, 1))
    second = resumable(tmp_path / "new" / "state.pt")
    second.model.load_state_dict(
        {k: torch.zeros_like(v) for k, v in second.model.state_dict().items()}
    )
    results = second.fit(data(), data(20, 1))
    assert torch.equal(weights_of(second.model), weights_of(whole.model))
    assert results == expected
    assert int(diary_of(second).steps) == int(diary_of(whole).steps) == 24
    restart = ("start", 4 * stop, stop)
    assert restart in diary_of(second).events
    assert [e for e in diary_of(second).events if e != restart] == diary_of(whole).events


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        (lambda p: Adam(p, lr=0.01, amsgrad=True), lambda o: CosineAnnealingLR(o, 6)),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda o: MultiStepLR(o, [2, 4])),
    ],
)
@pytest.mark.parametrize("precision", ["float64", "float16"])
def test_other_optimisers_and_precisions_resume_too(optimizer, scheduler, precision, tmp_path):
    settings = {"optimizer": optimizer, "scheduler": scheduler, "precision": precision}
    whole = resumable(None, **settings)
    whole.fit(data())
    resumable(tmp_path / "state.pt", 3, **settings).fit(data())
    second = resumable(tmp_path / "state.pt", **settings)
    second.fit(data())
    assert torch.equal(weights_of(second.model), weights_of(whole.model))


def test_batchnorm_statistics_resume_too(tmp_path):
    images = Tensors(torch.randn(24, 1, 8, 8), torch.arange(24) % CLASSES)

    def run(epochs, path):
        with seeds.seeded("weights"):
            model = SmallAlexNet((1, 8, 8), CLASSES, width=4)
        trainer(model, epochs=epochs, batch_size=8, checkpoint=path).fit(images)
        return model.state_dict()

    run(1, tmp_path / "state.pt")
    resumed, whole = run(3, tmp_path / "state.pt"), run(3, None)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_finished_run_is_not_trained_again(tmp_path):
    first = resumable(tmp_path / "state.pt", 2)
    results = first.fit(data())
    content = (tmp_path / "state.pt").read_bytes()
    second = resumable(tmp_path / "state.pt", 2)
    assert second.fit(data()) == results
    assert torch.equal(weights_of(second.model), weights_of(first.model))
    assert (tmp_path / "state.pt").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_stop_rule_that_held_holds_after_a_resume(tmp_path):
    rule: dict[str, Any] = {"stop_when": lambda result: result.epoch >= 2}
    assert len(resumable(tmp_path / "state.pt", **rule).fit(data())) == 2
    assert len(resumable(tmp_path / "state.pt", **rule).fit(data())) == 2


@pytest.mark.parametrize(
    ("settings", "train", "message"),
    [
        ({"seed": 1}, data(), "was made with seed 0, got 1"),
        ({"batch_size": 8}, data(), "was made with batch_size 16, got 8"),
        ({"precision": "float64"}, data(), "was made with precision float32, got float64"),
        ({}, data(40), "was made with training examples 50, got 40"),
        ({"optimizer": lambda p: SGD(p, lr=0.5)}, data(), r"optimizer SGD .*0\.1.* got SGD .*0\.5"),
        ({"optimizer": Adam}, data(), "optimizer SGD .* got Adam"),
        ({"scheduler": None}, data(), r"was made with scheduler \w+ .*, got NoneType"),
        ({"scheduler": lambda o: StepLR(o, 7)}, data(), r"scheduler .* got StepLR .*7"),
        ({"callbacks": []}, data(), "was made with callback 0, which is not there now"),
        ({"callbacks": [Diary(), Diary()]}, data(), "was made without callback 1"),
    ],
)
def test_checkpoint_of_another_run_is_refused(settings, train, message, tmp_path):
    resumable(tmp_path / "state.pt", 1).fit(data())
    content = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint .*state\.pt .*{message}.*; "):
        resumable(tmp_path / "state.pt", **settings).fit(train)
    assert (tmp_path / "state.pt").read_bytes() == content


def test_checkpoint_of_another_model_is_refused(tmp_path):
    resumable(tmp_path / "state.pt", 1).fit(data())
    other = resumable(tmp_path / "state.pt")
    other.model = MLP((FEATURES,), CLASSES, width=9)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match=r"state\.pt does not fit the model"):
        other.fit(data())
    for name, weight in other.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("part", [{}, 5, None, {"state": {}, "param_groups": []}])
def test_checkpoint_of_another_optimiser_is_refused(part, tmp_path):
    path = tmp_path / "state.pt"
    resumable(path, 1).fit(data())
    torch.save(torch.load(path, weights_only=True) | {"optimizer": part}, path)
    other = resumable(path)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match=r"state\.pt does not fit the optimizer"):
        other.fit(data())
    for name, weight in other.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_seed_of_numpy_resumes(tmp_path):
    path = tmp_path / "state.pt"
    for epochs in (1, 2):
        results = resumable(path, epochs, seed=np.int64(0)).fit(data())
    assert len(results) == 2
    assert results == resumable(None, 2).fit(data())


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", {"weights": torch.zeros(2)}, [1, 2], torch.zeros(3), "cut"],
    ids=["empty", "garbage", "other dict", "list", "tensor", "cut"],
)
def test_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "state.pt"
    if content == "cut":
        resumable(path, 1).fit(data())
        path.write_bytes(path.read_bytes()[:-500])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"state\.pt (is no checkpoint|holds something else)"):
        resumable(path).fit(data())
    assert path.read_bytes() == before


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("format", ["torch", "legacy torch", "pickle"])
def test_checkpoint_that_would_run_code_is_refused(format, tmp_path):
    path, exploded = tmp_path / "state.pt", tmp_path / "exploded"
    state = {"settings": {}, "updates": 0, "results": [], "model": Bomb(exploded)}
    if format == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == "torch")
    with pytest.raises(ValueError, match="is no checkpoint that can be read"):
        resumable(path).fit(data())
    assert not exploded.exists()
    if format != "pickle":
        torch.load(path, weights_only=False)
        assert exploded.exists()  # it would have


VICTIM = """
import sys, torch
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Callback, Trainer

class Tell(Callback):
    def on_start(self, run):
        print("started at", len(run.results), flush=True)

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
data = Tensors(torch.randn(40, 6, generator=draw), torch.arange(40) % 3)
torch.manual_seed(0)
model = MLP((6,), 3, width=64, dropout=0.4)
trainer = Trainer(
    model,
    optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9),
    scheduler=lambda o: StepLR(o, 40, 0.7),
    epochs=int(sys.argv[2]),
    batch_size=8,
    device="cpu",
    callbacks=[Tell()],
    checkpoint=sys.argv[1] if len(sys.argv) > 3 else None,
)
trainer.fit(data)
torch.save(model.state_dict(), sys.argv[1] + ".weights")
print("done", flush=True)
"""


def test_killed_process_resumes_to_the_same_weights(tmp_path):
    """SIGKILL at two random moments while checkpoints are written; then one run to the end."""
    script = tmp_path / "victim.py"
    script.write_text(VICTIM)
    whole, killed = tmp_path / "whole.pt", tmp_path / "killed.pt"
    epochs = "200"

    def start(path, *arguments):
        command = [sys.executable, str(script), str(path), epochs, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    undisturbed = start(whole)
    moments = random.Random(0)
    starts = []
    for _ in range(2):
        process = start(killed, "checkpointed")
        assert process.stdout is not None
        starts.append(int(process.stdout.readline().split()[-1]))
        while not killed.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = start(killed, "checkpointed")
    output, _ = last.communicate()
    starts.append(int(output.splitlines()[0].split()[-1]))
    assert undisturbed.communicate()[0].endswith("done\n")
    assert output.endswith("done\n")
    assert starts == sorted(starts)
    assert starts[0] == 0 < starts[-1]
    expected, got = (torch.load(f"{path}.weights", weights_only=True) for path in (whole, killed))
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
