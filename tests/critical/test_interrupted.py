"""A search leaves no trace, also when it is interrupted or the model is wrapped."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from memtools import CriticalProbe, critical_radius, find_critical, linear_reach

CALLS = {
    "lass": lambda model, x: find_critical(model, x, radius=0.1),
    "auto": lambda model, x: find_critical(model, x, radius=0.1, method="auto"),
    "certify": lambda model, x: find_critical(model, x, radius=0.02, method="auto", certify=True),
    "critical_radius": lambda model, x: critical_radius(model, x, [0.05, 0.1]),
    "linear_reach": lambda model, x: linear_reach(model, x, radius=0.1),
    "probe": lambda model, x: CriticalProbe(x, radius=0.1)(model),
}


@pytest.fixture(params=list(CALLS))
def call(request):
    return CALLS[request.param]


class Fails(nn.Module):
    """Raises at its k-th call, after it has drawn random numbers and changed modes."""

    def __init__(self, model, k, error):
        super().__init__()
        self.model, self.k, self.error, self.calls = model, k, error, []

    def forward(self, x):
        self.calls.append(len(x))
        if len(self.calls) == self.k:
            torch.rand(3)
            self.model.train(not self.model.training)
            raise self.error
        return self.model(x)


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [(id(p), p.requires_grad, id(p.grad), p._version) for p in model.parameters()],
        [p.detach().clone() for p in (*model.parameters(), *model.buffers())],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        elif a and isinstance(a, list) and isinstance(a[0], torch.Tensor):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        else:
            assert a == b


def prepared(networks):
    """In train mode but for one part, partly frozen, and with gradients in it."""
    model, inputs, _ = networks.trained("CNN")
    model.train()
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].requires_grad_(False)
    return model, inputs


def test_nothing_changes(call, networks):
    model, inputs = prepared(networks)
    before = state_of(model)
    call(model, inputs)
    assert_same(before, state_of(model))


@pytest.mark.parametrize("k", [1, 2, 5, 8, 9, 10])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_nothing_changes_when_the_model_fails(call, k, error, networks):
    inner, inputs = prepared(networks)
    model = Fails(inner, k, error)
    before = state_of(model)
    with torch.no_grad():
        try:
            call(model, inputs)
        except (KeyboardInterrupt, ZeroDivisionError):
            assert len(model.calls) == k
        else:
            # A proof swallows errors, and the shortest calls are over before.
            assert len(model.calls) < k or call is CALLS["certify"]
    after = state_of(model)
    assert_same(before[:4], after[:4])
    assert torch.equal(before[4], after[4])


def test_control_c(networks, method, request):
    """A signal, at any time of a search that would take for ever."""
    # A shell that starts the tests in the background has them ignore it.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))
    model, inputs = prepared(networks)
    inputs = inputs.repeat(200, 1, 1, 1) + 1e-3 * torch.randn(12000, 1, 6, 6)
    before = state_of(model)
    for delay in (0.05, 0.3, 0.6):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        steps: dict[str, Any] = {"max_steps": 10_000} if method == "lass" else {"effort": 1000}
        with pytest.raises(KeyboardInterrupt):
            find_critical(model, inputs, radius=0.01, method=method, batch_size=32, **steps)
        timer.join()
        assert_same(before, state_of(model))


def test_the_process_can_be_interrupted():
    """From outside, with a bar on the screen."""
    script = (
        "import signal, torch, memtools\n"
        # A job in the background of a shell is born deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "torch.set_num_threads(1)\n"
        "model = torch.nn.Linear(4, 3).train()\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    memtools.find_critical(model, torch.randn(50000, 4), radius=1e-3,\n"
        "                           max_steps=100000, batch_size=64, progress=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', model.training, model.weight.grad)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output == "interrupted True None\n", errors


@pytest.mark.parametrize("kind", ["compiled", "compiled in place", "distributed", "frozen"])
def test_wrapped_models_give_the_same(method, kind, networks, request):
    trained, inputs, radius = networks.trained("CNN")
    model: Any = trained
    expected = find_critical(model, inputs, radius=radius, method=method)
    match kind:
        case "compiled":
            model = torch.compile(model, backend="aot_eager")
        case "compiled in place":
            model.compile(backend="aot_eager")
        case "distributed":
            request.getfixturevalue("process_group")
            model = nn.parallel.DistributedDataParallel(model)
        case "frozen":
            model.requires_grad_(False)
    search = find_critical(model, inputs, radius=radius, method=method)
    assert torch.equal(search.points, expected.points)
    assert torch.equal(search.first_step, expected.first_step)
    assert not search.points.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_mode(call, mode, networks):
    model, inputs, _ = networks.trained("CNN")
    expected = call(model, inputs)
    with mode():
        result = call(model, inputs)
        alike = call(model, inputs.clone())  # a tensor of inference mode itself
    for found in (result, alike):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected)
        else:
            assert torch.equal(found.points, expected.points)
            found.points.clone().requires_grad_()  # of use outside as well
