"""A probe in a plain loop."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memtools
from memtools.probe import Probe
from memtools.testing import assert_untouched


def build(*extra):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), *extra, nn.Linear(8, 3))


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(30, 4, generator=generator), torch.arange(30) % 3


def changed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def test_values_are_those_of_the_functions_in_eval_mode(examples):
    model, (inputs, targets) = build(nn.Dropout()), examples
    probe = Probe(
        inputs, targets, radius=0.2, critical={"max_steps": 5}, chunk_size=7, name="train"
    )
    norms = []
    for epoch in (1, 2):
        with assert_untouched(model, inputs=inputs, targets=targets):
            values = probe(model, epoch)
        model.eval()
        logits = model(inputs).detach()
        norms.append(memtools.input_gradient_norms(model, inputs, targets).double())
        ratio = memtools.critical_sample_ratio(model, inputs, radius=0.2, max_steps=5)
        assert values == pytest.approx(
            {
                "train/loss": float(F.cross_entropy(logits, targets)),
                "train/accuracy": float((logits.argmax(1) == targets).float().mean()),
                "train/gini_instantaneous": float(memtools.gini(norms[-1])),
                "train/gini_of_running_mean": float(memtools.gini(sum(norms))),
                "train/critical_sample_ratio": float(ratio),
            },
            rel=1e-5,
        )
        model.train()
        changed(model)


def test_every_other_epoch(examples):
    probe, model = Probe(*examples, every=3), build()
    assert [epoch for epoch in range(1, 10) if probe(model, epoch)] == [1, 3, 6, 9]
    assert probe(model, 9) == {}
    assert probe.measurements == 4
    with pytest.raises(ValueError, match=r"epoch must not go backwards, got 1 after 9; call"):
        probe(model, 1)
    probe.reset()
    assert probe(model, 0)


def test_a_probe_goes_on_where_another_was(examples):
    model = build()
    whole, first, second = (Probe(*examples) for _ in range(3))
    for epoch in range(4):
        if epoch == 2:
            second.load_state_dict(first.state_dict())
        values = whole(model, epoch)
        assert (first if epoch < 2 else second)(model, epoch) == values
        changed(model)
    with pytest.raises(ValueError, match="state must be of a probe with 5 examples, got one with"):
        Probe(examples[0][:5], examples[1][:5]).load_state_dict(whole.state_dict())


def test_a_training_that_diverges_goes_on(examples):
    model: Any = build()
    probe = Probe(*examples, radius=0.1)
    before = probe(model, 1)
    weight = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    values = probe(model, 2)
    assert math.isnan(values.pop("probe/gini_instantaneous"))
    assert values.pop("probe/gini_of_running_mean") == before["probe/gini_of_running_mean"]
    assert all(math.isnan(value) for value in values.values())
    assert probe.measurements == 1
    with torch.no_grad():
        model[0].weight.copy_(weight)
    assert probe(model, 3) == pytest.approx(before)


def test_inputs_take_the_dtype_of_the_weights_and_targets_any_form(examples):
    inputs, targets = examples
    soft = F.one_hot(targets, 3).double()
    hard = Probe(inputs, targets).measure(build().double())
    values = Probe(inputs, soft).measure(build().double())
    assert "probe/accuracy" not in values
    assert values["probe/loss"] == pytest.approx(hard["probe/loss"])


def test_it_measures_inside_inference_mode_and_is_its_own_copy(examples):
    inputs, targets = examples[0].clone(), examples[1]
    probe, model = Probe(inputs, targets), build()
    inputs.zero_()
    with torch.inference_mode():
        assert probe.measure(model) == Probe(*examples).measure(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1 epoch, got 0"),
        ({"critical": {"max_steps": 3}}, "and radius is missing; pass radius"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(examples, options, message):
    with pytest.raises(ValueError, match=message):
        Probe(*examples, **options)


def test_the_model_must_be_a_module(examples):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        Probe(*examples)(lambda x: x, 1)  # type: ignore[arg-type]
