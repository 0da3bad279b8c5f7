"""Metrics over any batches: in any split, merged at any place, they are the function of all."""

import math
from collections import Counter
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from torch import nn

import memtools
from memtools import metrics
from tests.metrics.cases import CLASSES, MEASURES, RADIUS, N, data, logits, network, updated
from tests.properties.tensors import any_number, batches, ugly, vectors
from tests.properties.test_inequality import bound, exact_gini

EXAMPLES = st.lists(st.integers(0, N - 1), min_size=1, max_size=6)
SPLITS = st.lists(EXAMPLES, min_size=1, max_size=3)


@cache
def of_every_example(name):
    """What is measured of each of the examples, by the function on all of them at once."""
    (inputs, targets), model = data(), network()
    if name == "InputGradientGini":
        return memtools.input_gradient_norms(model, inputs, targets)
    if name == "ParameterGradientGini":
        return memtools.parameter_gradient_norms(model, inputs, targets)
    if name == "MisclassificationRate":
        return 1 - memtools.scores.correctness(logits(), targets).double()
    if name == "ScoreGini":
        return inputs.square().sum(1)
    return memtools.find_critical(model, inputs, radius=RADIUS).is_critical.double()


def at_once(name, seen):
    """The result for some examples, with repeats."""
    (inputs, targets), distinct = data(), sorted(set(seen))
    if name == "ClassSensitivity":
        return memtools.class_sensitivity(
            network(), inputs[seen], targets[seen], num_classes=CLASSES
        )
    values = of_every_example(name.split()[0])
    if name == "CriticalSampleRatio":
        return values[seen].mean()
    if name == "CriticalSampleRatio by index":
        return values[distinct].mean()
    if name == "MisclassificationRate":
        rates = torch.full((N,), torch.nan, dtype=torch.float64)
        rates[distinct] = values[distinct]
        return rates
    return memtools.gini(values[distinct])


def agree(found, wanted):
    found = found["rates"] if isinstance(found, dict) else found
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "TimeToConvergence"])
def test_every_split_and_every_merge_is_the_function_of_all(name):
    measure = MEASURES[name]

    @settings(max_examples=15)
    @given(SPLITS, SPLITS, st.integers(0, 1), st.booleans())
    def check(first, second, forgotten, by_forward):
        here, there = updated(measure.build(), measure, *second[:forgotten]), measure.build()
        here.reset()
        for metric, parts in ((here, first), (there, second)):
            for part in parts:
                arguments = measure.arguments(torch.tensor(part))
                if by_forward:
                    agree(metric(**arguments), at_once(name, part))
                else:
                    metric.update(**arguments)
        agree(here.compute(), at_once(name, [*chain(*first)]))
        here.merge_state(there)
        agree(here.compute(), at_once(name, [*chain(*first, *second)]))

    check()


@settings(max_examples=150)
@given(st.lists(vectors(any_number, most=5), max_size=3), st.data())
def test_scores_of_any_size(parts, drawn):
    metric, sums, counts = metrics.ScoreGini(4), Counter(), Counter()
    for values, numbers in parts:
        n = len(numbers)
        indices = drawn.draw(st.lists(st.integers(-1, 4), min_size=n, max_size=n))
        fits = all(0 <= v < math.inf for v in numbers) and all(0 <= i < 4 for i in indices)
        states: dict[str, Any] = metric.metric_state
        before = {key: state.clone() for key, state in states.items()}
        try:
            metric.update(values, indices)
        except ValueError as error:
            if fits:
                raise AssertionError from error
            states = metric.metric_state
            assert all(torch.equal(before[key], x) for key, x in states.items())
        else:
            assert fits
            for i, v in zip(indices, numbers, strict=True):
                sums[i] += v
                counts[i] += 1
    if not counts:
        return
    means = [sums[i] / counts[i] for i in counts]
    if math.isfinite(sum(means)) and all(map(math.isfinite, means)):
        found = metric.compute()
        exact = exact_gini(means, [1.0] * len(means))
        assert abs(float(found) - exact) <= bound(found, len(means)) + 1e-14
    else:
        with pytest.raises(ValueError, match="values"):
            metric.compute()


@settings(max_examples=150)
@given(st.lists(batches(any_number, columns=(2, 4)), min_size=1, max_size=4), st.data())
def test_epochs_of_any_logits(parts, drawn):
    metric, right, seen, epochs, first = metrics.TimeToConvergence(0.5), 0, 0, 0, math.inf
    for part in parts:
        n, classes = part.shape
        targets = drawn.draw(st.lists(st.integers(-1, classes), min_size=n, max_size=n))
        try:
            metric.update(part, torch.tensor(targets))
        except ValueError as error:
            fits = all(0 <= y < classes for y in targets) and bool(part.isfinite().all())
            if fits:
                raise AssertionError from error
        else:
            largest = part.detach().max(1).indices.tolist()
            right += sum(a == b for a, b in zip(largest, targets, strict=True))
            seen += n
        if drawn.draw(st.booleans()) and seen:
            metric.end_epoch()
            epochs += 1
            first = min(first, epochs) if right / seen >= 0.5 else first
            right = seen = 0
    if not seen:
        with pytest.raises(ValueError, match="needs a batch since the last epoch"):
            metric.end_epoch()
    if metric.update_called:
        result = metric.compute()
        assert float(result["epochs"]) == first
        assert float(result["epochs_run"]) == epochs


@pytest.mark.parametrize("name", MEASURES)
def test_ugly_arguments_are_refused_and_change_nothing(name):
    measure = MEASURES[name]
    metric = updated(measure.build(), measure, [0, 1])
    states: dict[str, Any] = metric.metric_state
    before = {key: state.clone() for key, state in states.items()}
    fitting = measure.arguments(torch.arange(4))
    if "model" in fitting:
        fitting |= {"model": nn.Linear(2, CLASSES), "inputs": torch.rand(4, 2)}
    for argument in fitting:
        # Another number of columns is for the model to refuse.
        for kind, value in ugly().items():
            if argument == "inputs" and kind == "no columns":
                continue
            with pytest.raises((TypeError, ValueError), match="|".join(fitting)):
                metric.update(**fitting | {argument: value})
    states = metric.metric_state
    assert all(torch.equal(before[key], x) for key, x in states.items())
