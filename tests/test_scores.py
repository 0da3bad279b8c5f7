import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtools import scores

FROM_LOGITS = ["loss", "confidence", "correctness", "el2n", "margin"]
# A softmax over at most 6 classes in float64.
TOLERANCE = 1e-12


@st.composite
def predictions(draw):
    n, classes = draw(st.integers(1, 8)), draw(st.integers(2, 6))
    logit = st.floats(-50, 50, allow_subnormal=False)
    logits = draw(st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=n))
    logits = torch.tensor(logits[:n], dtype=torch.float64)
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return logits, torch.tensor(targets)


def one_example(logits, y):
    """All scores of one example, by their definitions."""
    weights = [math.exp(v - max(logits)) for v in logits]
    p = [w / sum(weights) for w in weights]
    error = [p[k] - (k == y) for k in range(len(p))]
    return {
        "loss": max(logits) - logits[y] + math.log(sum(weights)),
        "confidence": p[y],
        "correctness": logits.index(max(logits)) == y,
        "el2n": math.sqrt(sum(e * e for e in error)),
        "margin": logits[y] - max(v for k, v in enumerate(logits) if k != y),
    }


@given(predictions())
def test_scores_from_logits_agree_with_a_loop(batch):
    logits, targets = batch
    expected = [one_example(*row) for row in zip(logits.tolist(), targets.tolist(), strict=True)]
    for name in FROM_LOGITS:
        values = getattr(scores, name)(logits, targets).tolist()
        assert values == pytest.approx([e[name] for e in expected], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("name", FROM_LOGITS)
def test_dtypes_and_graph(name):
    logits, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    score = getattr(scores, name)
    assert not score(logits, targets).requires_grad
    if name == "correctness":
        assert score(logits, targets).dtype == torch.bool
        return
    assert score(logits, targets).dtype == torch.float32
    assert score(logits.double(), targets).dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):
        rounded = logits.to(half)
        assert torch.equal(score(rounded, targets), score(rounded.float(), targets))
    assert torch.equal(score(logits, targets.to(torch.uint8)), score(logits, targets))


def test_large_logits_do_not_overflow():
    logits, targets = torch.tensor([[3e38, -3e38], [0.0, 3e38]]), torch.tensor([0, 0])
    assert scores.confidence(logits, targets).tolist() == [1, 0]
    assert scores.el2n(logits, targets)[0] == 0
    assert scores.el2n(logits, targets)[1] == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("name", FROM_LOGITS)
@pytest.mark.parametrize(
    ("logits", "targets", "error", "text"),
    [
        (torch.ones(3), torch.zeros(3).long(), ValueError, r"logits must have shape \(n, C\)"),
        (torch.ones(3, 1), torch.zeros(3).long(), ValueError, r"C >= 2 classes, got \(3, 1\)"),
        (torch.ones(3, 2), torch.zeros(2).long(), ValueError, r"targets .* each of the 3 rows"),
        (torch.ones(3, 2), torch.full((3,), 2), ValueError, r"targets must lie in 0\.\.1"),
        (torch.ones(3, 2), torch.full((3,), -100), ValueError, r"from -100 to -100; .* ignored"),
        (torch.ones(3, 2), torch.zeros(3), ValueError, r"targets must be class numbers"),
        (torch.ones(3, 2), torch.zeros(3, 2).long(), ValueError, r"targets must be class numbers"),
        (torch.ones(3, 2) / 0, torch.zeros(3).long(), ValueError, r"logits of 3 of 3 examples"),
        ([[1.0, 2.0]], torch.zeros(1).long(), TypeError, r"logits must be a tensor, got list"),
        (torch.ones(1, 2), [0], TypeError, r"targets must be a tensor, got list"),
    ],
)
def test_errors_say_what_to_do(name, logits, targets, error, text):
    with pytest.raises(error, match=text):
        getattr(scores, name)(logits, targets)


histories = st.integers(0, 7).flatmap(
    lambda t: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=t, max_size=t),
        min_size=1,
        max_size=6,
    )
)


def as_history(rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), -1)


def same(a, b):
    return len(a) == len(b) and all(
        x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True)
    )


def forgetting(row):
    longest = len(row)
    row = [c for c in row if not math.isnan(c)]
    if not row:
        return math.nan
    if 1 not in row:
        return longest
    return sum(before == 1 and after == 0 for before, after in pairwise(row))


def learning(row):
    row = [c for c in row if not math.isnan(c)]
    if not row:
        return math.nan
    for start in range(len(row)):
        if all(row[start:]):
            return start + 1
    return math.inf


@given(histories)
def test_forgetting_events_agree_with_a_loop(rows):
    events = scores.forgetting_events(as_history(rows))
    assert events.dtype == torch.float32
    assert same(events.tolist(), [forgetting(row) for row in rows])


@given(histories)
def test_learning_time_agrees_with_a_loop(rows):
    times = scores.learning_time(as_history(rows))
    assert times.dtype == torch.float32
    assert same(times.tolist(), [learning(row) for row in rows])


@given(histories)
def test_never_learned_examples_rank_hardest(rows):
    """Also those with few presentations, against those that were forgotten as often as can be."""
    events = scores.forgetting_events(as_history(rows))
    learned = [events[i] for i, row in enumerate(rows) if 1 in row]
    never = [events[i] for i, row in enumerate(rows) if 1 not in row and 0 in row]
    assert all(hard > easy for hard in never for easy in learned)


def test_integers_and_booleans_are_histories():
    correct = torch.tensor([[1, 0, 1], [0, 0, 0]])
    for history in (correct, correct.bool(), correct.float()):
        assert scores.forgetting_events(history).tolist() == [1, 3]
        assert scores.learning_time(history).tolist() == [3, math.inf]


@pytest.mark.parametrize("name", ["forgetting_events", "learning_time"])
@pytest.mark.parametrize(
    ("history", "text"),
    [
        (torch.ones(3), r"correct must have shape \(n, T\), got \(3,\); .* correct\[None\]"),
        (torch.full((2, 3), 0.7), r"correct must hold 0, 1 or NaN, got other values; compare"),
    ],
)
def test_histories_of_something_else_are_refused(name, history, text):
    with pytest.raises(ValueError, match=text):
        getattr(scores, name)(history)
