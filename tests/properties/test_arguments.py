"""Everything else that is public: an argument of another kind is refused in words."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import memtools
from memtools import data, models, training
from tests.properties.tensors import ugly

INPUTS, TARGETS = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
MODEL = nn.Linear(2, 2)
ERRORS = (TypeError, ValueError, NotImplementedError)
NUMBERS = (-1, 2.5, math.nan, math.inf)
HISTORY = {
    name: [1.0, 0.5, 0.25] for name in ("csl", "aum", "confidence", "correctness", "presentations")
}


def train(model=MODEL, inputs=INPUTS, targets=TARGETS, member=None, **options):
    settings: dict[str, Any] = {"train": data.Tensors(inputs, targets)} | (member or {})
    members = [training.Member(nn.Linear(2, 2) if model is MODEL else model, **settings)]
    return training.train_ensemble(members, **{"epochs": 1, "engine": "loop"} | options)


def watched(model):
    with memtools.watch(model) as watch:
        assert isinstance(watch, memtools.Watch)


def scored(name, value):
    return memtools.suspects(HISTORY | {name: value})


CALLS = {
    "inputs": [
        lambda x: memtools.Probe(x, TARGETS)(MODEL, 1),
    ],
    "targets": [lambda x: memtools.Probe(INPUTS, x)(MODEL, 1)],
    "data": [lambda x: memtools.CriticalProbe(x, radius=0.1)],
    "radius": [
        lambda x: memtools.find_critical(MODEL, INPUTS, radius=x),
        lambda x: memtools.critical_sample_ratio(MODEL, INPUTS, radius=x),
        lambda x: memtools.linear_reach(MODEL, INPUTS, radius=x),
        lambda x: memtools.Probe(INPUTS, TARGETS, radius=x)(MODEL, 1),
    ],
    "bounds": [lambda x: memtools.linear_reach(MODEL, INPUTS, radius=0.1, bounds=x)],
    "radii": [lambda x: memtools.critical_radius(MODEL, INPUTS, x)],
    "unit": [lambda x: memtools.critical_radius(MODEL, INPUTS, [0.1], unit=x)],
    "normalize": [lambda x: memtools.pixel_radius(1, x), memtools.pixel_bounds],
    "model": [watched, lambda x: train(model=x), lambda x: memtools.Probe(INPUTS, TARGETS)(x, 1)],
    "member": [lambda x: training.train_ensemble([x])],
    "validation": [lambda x: train(validation=x)],
    "scores": [memtools.suspects, lambda x: memtools.label_issues(x, TARGETS)],
    "labels": [lambda x: memtools.label_issues(HISTORY, x)],
    "correct": [
        memtools.scores.forgetting_events,
        memtools.scores.forgetting_time,
        memtools.scores.learning_time,
    ],
}
FINE = {
    ("inputs", "NaN"), ("inputs", "infinite"), ("data", "a number"), ("inputs", "integers"),
    ("inputs", "bytes"), ("inputs", "no columns"),
    ("radius", "a Python number"), ("radius", "a number"), ("radius", "None"), ("unit", "a number"),
    ("unit", "a Python number"), ("bounds", "None"), ("normalize", "None"), ("validation", "None"),
    ("normalize", "a list"), ("bounds", "a list"), ("data", "no columns"), ("data", "NaN"),
    ("data", "infinite"), ("data", "integers"), ("data", "boolean"), ("data", "bytes"),
    ("data", "complex"), ("data", "a list"), ("data", "NumPy backwards"), ("correct", "NaN"),
    ("correct", "no rows"), ("correct", "no columns"), ("correct", "boolean"),
    ("correct", "integers"), ("correct", "bytes"), ("correct", "complex"),
}  # fmt: skip
"""What the model or a later call has to judge, or what is no mistake."""


@pytest.mark.parametrize("argument", CALLS)
def test_ugly_arguments_are_refused_in_words(argument):
    for call in CALLS[argument]:
        for kind, value in ugly().items():
            if (argument, kind) in FINE:
                continue
            with pytest.raises(ERRORS, match=f"{argument}|logits|radius|examples"):
                call(value)


@pytest.mark.parametrize("name", HISTORY)
def test_scores_of_other_lengths_or_kinds_are_refused(name):
    for value in ([1.0], [[1.0, 2.0, 3.0]], ["a", "b", "c"], [1j, 2j, 3j], None, 1.0):
        for call in (scored, lambda n, v: memtools.label_issues(HISTORY | {n: v}, [0, 1, 1])):
            with pytest.raises(ERRORS, match="scores"):
                call(name, value)


@pytest.mark.parametrize("name", ["targets", "is_corrupted", "clean_targets"])
def test_data_that_are_no_tensors_of_one_length_are_refused(name):
    for kind, value in ugly().items():
        if kind in ("None", "no columns") or (torch.is_tensor(value) and value.shape == (4, 2)):
            continue
        with pytest.raises(ERRORS, match=name):
            data.Tensors(**{"inputs": INPUTS, "targets": TARGETS, name: value})


def test_what_is_no_data_set_is_refused():
    for call in (data.in_memory, data.random_labels, data.random_inputs):
        for value in (None, 1.0, "data", [], [(1.0, 0.5)]):
            with pytest.raises(ERRORS, match=r"dataset|targets"):
                call(value)


@pytest.mark.parametrize("name", ["nothing", "", None, 3])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="digits"):
        data.load(name)
    with pytest.raises(ValueError, match="mlp"):
        models.build(name, (2,), 2)


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    "name", ["width", "depth", "dropout", "input_dropout", "input_noise", "hidden_noise"]
)
def test_networks_out_of_range_are_refused(name, value):
    if (name.endswith("noise") and value == 2.5) or (name == "width" and value == 1):
        return
    with pytest.raises(ERRORS, match=name):
        models.build("mlp", (2,), 2, **{"width": 3, name: value})
    with pytest.raises(ERRORS, match=name):
        models.build("small-alexnet", (1, 8, 8), 2, **{"width": 3, name: value})
    if name in ("width", "depth"):
        with pytest.raises(ERRORS, match=name):
            models.build("tiny-mlp", (1, 8, 8), 2, **{name: value})
    if value != 2.5:
        with pytest.raises(ERRORS, match="std"):
            models.GaussianNoise(value)


SETTINGS = {
    "epochs": NUMBERS,
    "batch_size": NUMBERS,
    "updates_per_epoch": NUMBERS,
    "evaluate_every": NUMBERS,
    "momentum": (-1, math.nan, math.inf),
    "eps": (-1, math.nan, math.inf),
    "stop_at_train_accuracy": (-1, 0, 2.5, math.nan, math.inf),
    "engine": ("quick", None),
    "optimizer": ("adam", None),
    "precision": ("float16", None),
    "device": ("moon", "cuda:99"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_trainings_out_of_range_are_refused(name):
    for value in SETTINGS[name]:
        with pytest.raises(ERRORS, match=name):
            train(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "seed"])
def test_members_out_of_range_are_refused(name):
    for value in (math.nan, math.inf) if name == "seed" else (-1, math.nan, math.inf):
        with pytest.raises(ERRORS, match=name):
            train(member={name: value})


OPTIONS = {
    "chunk_size": lambda v: memtools.gradient_norms(MODEL, INPUTS, TARGETS, chunk_size=v),
    "batch_size": lambda v: memtools.find_critical(MODEL, INPUTS, radius=0.1, batch_size=v),
    "max_steps": lambda v: memtools.find_critical(MODEL, INPUTS, radius=0.1, max_steps=v),
    "generator": lambda v: memtools.find_critical(MODEL, INPUTS, radius=0.1, generator=v),
    "every": lambda v: memtools.Probe(INPUTS, TARGETS, every=v),
    "reduction": lambda v: memtools.watch(MODEL, reduction=v),
    "share": lambda v: memtools.suspects(HISTORY, share=abs(v) + 1 if v == v else v),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", NUMBERS)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ERRORS, match=name):
        OPTIONS[name](value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_pixel_values_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="radius must be"):
        memtools.pixel_radius(value)
    with pytest.raises(ValueError, match="scale must be"):
        memtools.pixel_radius(1, scale=value)


@pytest.mark.parametrize("value", [0, math.nan, math.inf, -1])
def test_deviations_that_are_none_are_refused(value):
    normalize = SimpleNamespace(mean=[0.5], std=[value])
    for call in (lambda n: memtools.pixel_radius(1, n), memtools.pixel_bounds):
        if value == math.inf:
            continue
        with pytest.raises(ValueError, match="normalize must have positive"):
            call(normalize)
