"""Metrics beside the obvious way to write them, and the trainer beside a bare loop.

Within a group, ``reference`` is the loop that everybody writes first.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from bench.unrolled import paper, recorded, unrolled
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Trainer

BATCH = 256


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def problem(one_thread) -> tuple[nn.Module, Tensor, Tensor]:
    model = MLP((1, 28, 28), 10, width=512)
    return model, torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))


def plain_backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    return loss.detach()


def input_norms_by_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        x = x[None].requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y[None]), x)
        norms.append(gradient.abs().sum())
    return torch.stack(norms)


def parameter_norms_by_loop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    return torch.stack(norms)


NORMS = {
    "input": (memtools.input_gradient_norms, input_norms_by_loop),
    "parameter": (memtools.parameter_gradient_norms, parameter_norms_by_loop),
}


@pytest.mark.parametrize("way", ["memtools", "reference", "plain backward pass"])
@pytest.mark.parametrize("kind", NORMS)
def test_gradient_norms(kind, way, problem, benchmark):
    benchmark.group = f"{kind} gradient norms, MLP 784-512-512-10, batch {BATCH}"
    ours, loop = NORMS[kind]
    torch.testing.assert_close(ours(*problem), loop(*problem), rtol=1e-4, atol=1e-6)
    benchmark({"memtools": ours, "reference": loop, "plain backward pass": plain_backward}[way],
              *problem)  # fmt: skip


def critical_by_loop(model: nn.Module, inputs: Tensor, radius: float, steps: int) -> float:
    found = 0
    for x in inputs:
        point = x[None].clone()
        with torch.no_grad():
            start = model(point).argmax(1)
        for _ in range(steps):
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), start), point)
            point = point.detach() + radius * 0.25 / 0.3 * gradient.sign()
            point = torch.clamp(point, x[None] - radius, x[None] + radius)
            with torch.no_grad():
                if model(point).argmax(1) != start:
                    found += 1
                    break
    return found / len(inputs)


@pytest.mark.parametrize("way", ["memtools", "reference"])
def test_critical_sample_ratio(way, problem, benchmark):
    benchmark.group = f"critical sample ratio, 10 steps, MLP 784-512-512-10, {BATCH} examples"
    model, inputs, _ = problem
    radius = 0.01

    def ours() -> float:
        # Without noise, so that both ways do the same.
        return float(
            memtools.critical_sample_ratio(model, inputs, radius=radius, noise=0, max_steps=10)
        )

    def loop() -> float:
        return critical_by_loop(model, inputs, radius, 10)

    assert ours() == pytest.approx(loop(), abs=2 / BATCH)
    benchmark(ours if way == "memtools" else loop)


@pytest.mark.parametrize("way", ["memtools", "reference"])
def test_loss_sensitivity(way, benchmark):
    benchmark.group = "loss sensitivity at 10 times of 40 updates, TinyMLP, 1,000 examples"
    training = paper(40)
    tape = recorded(training)
    times = tape.spaced(10)

    def ours() -> Tensor:
        return memtools.loss_sensitivity(tape, (training.inputs, training.targets), at=times)

    def loop() -> Tensor:
        return unrolled(training, times)

    expected = loop()
    assert (ours() - expected).abs().max() <= 1e-4 * expected.abs().max()
    benchmark(ours if way == "memtools" else loop)


@pytest.mark.parametrize("way", ["memtools", "reference"])
def test_trainer(way, benchmark):
    benchmark.group = "one epoch of 100 updates, MLP 784-64-10, batch 64"
    data = Tensors(torch.rand(6400, 784), torch.randint(10, (6400,)))

    def ours() -> nn.Module:
        torch.manual_seed(0)
        model = MLP((784,), 10, width=64, depth=1)
        Trainer(model, epochs=1, batch_size=64, device="cpu").fit(data)
        return model

    def loop() -> nn.Module:
        torch.manual_seed(0)
        model = MLP((784,), 10, width=64, depth=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for indices in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data.inputs[indices]), data.targets[indices]).backward()
            optimizer.step()
        return model

    model = benchmark(ours if way == "memtools" else loop)
    assert all(bool(w.isfinite().all()) for w in model.parameters())
