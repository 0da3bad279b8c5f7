"""Scores of logits and of histories, against loops in Python's floats."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools import scores
from tests.properties.softmax import scores_of
from tests.properties.tensors import any_number, batches, finite, laid_out

FROM_LOGITS = ("loss", "confidence", "correctness", "el2n", "margin")


@settings(max_examples=1000)
@given(batches(), st.data())
def test_scores_of_logits_of_any_size(logits, data):
    n, classes = logits.shape
    targets = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    before = logits.detach().clone()
    expected = [
        scores_of(row, y)
        for row, y in zip(logits.detach().double().tolist(), targets.tolist(), strict=True)
    ]
    for name in FROM_LOGITS:
        found = getattr(scores, name)(logits, targets)
        if name == "correctness":
            assert found.tolist() == [bool(wanted[name]) for wanted in expected]
            continue
        about = torch.finfo(found.dtype)
        for value, wanted in zip(found.detach().double().tolist(), expected, strict=True):
            exact = wanted[name]
            if abs(exact) > about.max:
                continue  # no number of that dtype
            slack = (
                8 * (classes + 2) * about.eps * max(1.0, abs(exact)) if name != "correctness" else 0
            )
            assert abs(value - exact) <= slack, (name, value, exact)
    assert torch.equal(logits.detach(), before)


@settings(max_examples=500)
@given(batches(elements=any_number))
def test_logits_that_are_no_numbers_are_refused_or_propagate_visibly(logits):
    targets = torch.zeros(len(logits), dtype=torch.int64)
    bad = ~logits.detach().isfinite().all(1)
    for name in ("loss", "confidence", "el2n", "margin"):
        try:
            found = getattr(scores, name)(logits, targets).detach()
        except ValueError:
            assert bool(bad.any())
        else:
            assert not bool((found[logits.detach().isnan().any(1)]).isfinite().any())


def counted(row: list[float]) -> list[int]:
    return [int(v) for v in row if not math.isnan(v)]


def forgetting(row: list[float]) -> float:
    seen = counted(row)
    if not seen:
        return math.nan
    if 1 not in seen:
        return len(row)
    return sum(pair == (1, 0) for pair in itertools.pairwise(seen))


def stays(row: list[float], value: int) -> float:
    seen = counted(row)
    if not seen:
        return math.nan
    if seen[-1] != value:
        return math.inf
    time = len(seen)
    while time > 1 and seen[time - 2] == value:
        time -= 1
    return time


@st.composite
def histories(draw):
    n, length = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    cells = st.sampled_from([0.0, 1.0, math.nan])
    values = draw(st.lists(cells, min_size=n * length, max_size=n * length))
    return draw(laid_out(values, (n, length), dtype))


def same(found: torch.Tensor, wanted: list[float]) -> bool:
    pairs = zip(found.tolist(), wanted, strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


@settings(max_examples=700)
@given(histories())
def test_histories_of_any_dtype_and_layout(history):
    rows = history.detach().double().tolist()
    assert same(scores.forgetting_events(history), [forgetting(row) for row in rows])
    assert same(scores.learning_time(history), [stays(row, 1) for row in rows])
    assert same(scores.forgetting_time(history), [stays(row, 0) for row in rows])


@settings(max_examples=300)
@given(batches(elements=finite))
def test_histories_of_other_values_are_refused(history):
    if bool(((history == 0) | (history == 1)).all()):
        return
    for name in ("forgetting_events", "learning_time", "forgetting_time"):
        with pytest.raises(ValueError, match="correct"):
            getattr(scores, name)(history)
