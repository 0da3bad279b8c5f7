"""What a search returns, what it shows meanwhile, and how much memory it takes."""

import subprocess
import sys
import weakref
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from memtools import find_critical
from memtools.critical import CriticalSearch, Screening, searched, watch


def searches(networks, **options: Any):
    model, inputs, radius = networks.trained("MLP")
    model, inputs = model.double(), inputs.double()
    options = {"radius": radius, "method": "auto"} | options
    whole = find_critical(model, inputs, **options)
    parts = [find_critical(model, inputs[k::3], **options) for k in range(3)]
    return whole, parts


@pytest.mark.parametrize("certify", [False, True])
def test_interleaved(networks, certify):
    whole, parts = searches(networks, certify=certify)
    joined = CriticalSearch.interleaved(parts)
    for name in ("is_critical", "predicted", "first_step"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    torch.testing.assert_close(joined.points, whole.points)
    assert joined.evaluations == sum(part.evaluations for part in parts)
    assert joined.rounding == max(part.rounding for part in parts)
    assert joined.max_steps == whole.max_steps
    assert joined.is_complete
    assert joined.screening == whole.screening
    assert torch.equal(joined.ratio_by_step(), whole.ratio_by_step())
    if certify:
        assert joined.is_certified is not None
        assert whole.is_certified is not None
        assert torch.equal(joined.is_certified, whole.is_certified)
        assert joined.possible_ratio == whole.possible_ratio
    else:
        assert joined.is_certified is None


def test_interleaved_parts_of_all_kinds(networks):
    _, (first, *_) = searches(networks)
    one = CriticalSearch.interleaved([first])
    assert torch.equal(one.points, first.points)
    limited, parts = searches(networks, time_limit=1e-9)
    assert not limited.is_complete
    assert not CriticalSearch.interleaved([parts[0], first]).is_complete
    rest = CriticalSearch(
        first.is_critical, first.points, first.predicted, first.first_step, 1, 2, 0.5,
        screening=Screening(10, 5, 1), uncertified="no rule",
    )  # fmt: skip
    joined = CriticalSearch.interleaved([rest, rest])
    assert joined.screening == Screening(20, 10, 2)
    assert joined.uncertified == "no rule"


def test_to(networks):
    whole, _ = searches(networks, certify=True)
    moved = whole.to("meta")
    for name in ("is_critical", "points", "predicted", "first_step", "is_certified"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(whole, name).device.type == "cpu"
    assert moved.evaluations == whole.evaluations
    assert torch.equal(whole.to(torch.device("cpu")).points, whole.points)


def test_data_set(networks):
    whole, _ = searches(networks)
    found = whole.is_critical
    points, classes = whole.dataset()[:]
    assert torch.equal(points, whole.points[found])
    assert torch.equal(classes, whole.predicted[found])
    labels = torch.arange(60)
    data = whole.dataset(labels)
    assert len(data) == found.sum()
    assert torch.equal(data[:][1], labels[found])
    soft = torch.rand(60, 5)
    assert torch.equal(whole.dataset(soft)[:][1], soft[found])
    with pytest.raises(ValueError, match=r"one label for each of the 60 examples .*, got 3"):
        whole.dataset(labels[:3])


def test_ratios(networks):
    whole, _ = searches(networks, certify=True)
    assert whole.ratio == found_share(whole.is_critical)
    assert whole.ratio.dtype == whole.possible_ratio.dtype == torch.float32
    assert whole.is_certified is not None
    assert whole.possible_ratio == found_share(~whole.is_certified)
    assert whole.ratio <= whole.possible_ratio
    plain, _ = searches(networks)
    with pytest.raises(ValueError, match=r"possible_ratio needs proofs, .*certify=True"):
        _ = plain.possible_ratio


def found_share(mask):
    return mask.float().mean()


def test_progress(method, networks, monkeypatch):
    """The bar never shows more than all examples, nor goes back, and has all of them at the end."""
    model, inputs, radius = networks.trained("MLP")
    shown = []

    @contextmanager
    def bar(wanted, title, total, note):
        assert wanted
        assert total == 60
        value = lambda x: x() if callable(x) else x  # noqa: E731
        yield lambda completed, active, found: shown.append(
            (value(completed), value(active), value(found))
        )

    monkeypatch.setattr(watch, "progress_bar", bar)
    search = find_critical(
        model, inputs, radius=radius, method=method, batch_size=16, progress=True
    )
    completed = [settled for settled, _, _ in shown]
    assert completed == sorted(completed)
    assert max(completed) <= 60
    assert completed[-1] == 60
    assert shown[-1][2] == search.is_critical.sum()
    assert all(0 <= active <= 16 for _, active, _ in shown)


def test_progress_goes_to_stderr():
    script = (
        "import random, torch, memtools\n"
        "torch.manual_seed(0)\n"
        "model, inputs, state = torch.nn.Linear(4, 3), torch.randn(50, 4), random.getstate()\n"
        "memtools.find_critical(model, inputs, radius=0.1, progress=True, max_steps=30)\n"
        "assert random.getstate() == state"  # rich draws a number when it is imported
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for text in ("critical samples", "50/50", "0 active", "found", "0:00:00"):
        assert text in done.stderr, text


def test_nothing_is_shown_without_being_asked(networks, capfd, method):
    model, inputs, radius = networks.trained("MLP")
    find_critical(model, inputs, radius=radius, method=method)
    assert capfd.readouterr() == ("", "")


class Largest(TorchDispatchMode):
    """Bytes of new memory that operators take: the most at once, and the most of one."""

    def __init__(self):
        super().__init__()
        self.largest, self.alive, self.peak, self.known = 0, 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            given = [a for a in args if isinstance(a, torch.Tensor)]
            if key in self.known or any(a.untyped_storage().data_ptr() == key for a in given):
                continue
            self.known[key] = size
            self.alive += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
            weakref.finalize(storage, self._gone, key)
        return made

    def _gone(self, key):
        self.alive -= self.known.pop(key, 0)


@pytest.mark.parametrize("options", [{}, {"gradient_at": "start"}, {"bounds": (0.0, 1.0)}])
def test_memory_grows_by_one_copy_of_the_inputs_only(method, options):
    """Of ten times the examples at the same batch size: one copy, and 200 bytes for each."""
    if method == "auto":
        options = {k: v for k, v in options.items() if k == "bounds"}
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    peaks = {}
    for n in (300, 3000):
        inputs = torch.rand(n, 1, 12, 12, generator=torch.Generator().manual_seed(0))
        with Largest() as memory:
            find_critical(
                model, inputs, radius=0.003, method=method, batch_size=64, max_steps=2, **options
            )
        peaks[n] = memory.peak
    copy = 3000 * 144 * 4
    assert memory.largest == copy
    assert copy <= peaks[3000] <= copy + peaks[300] + 3000 * 200


def test_a_batch_is_as_large_as_its_activations_allow(monkeypatch):
    """Weights that no backward pass needs are not taken for activations, nor these for weights."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(300_000))
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            wide = x.repeat(1, 1000).tanh().exp()  # 16 kB each are kept for the backward pass
            return self.layer(wide.reshape(len(x), 1000, 4).mean(1))

    sizes = []
    model = Wide()
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    monkeypatch.setattr(searched, "CPU_ACTIVATIONS", 2**20)
    find_critical(model, torch.randn(500, 4), radius=0.1, max_steps=1)
    assert 10 <= max(sizes) <= 40
