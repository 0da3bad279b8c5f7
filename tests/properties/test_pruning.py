"""What is kept and what is dropped, by scores of any kind."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtools import pruning
from tests.properties.tensors import FLOATS, any_number, vectors

SCORES = vectors(elements=any_number, dtypes=FLOATS, most=30, least=0)
SHARES = st.sampled_from([0.0, 1.0, 0.5, 1 / 3]) | st.floats(0, 1)


def rank(value: float, hardest: bool) -> float:
    if math.isnan(value):
        return -math.inf
    return value if hardest else -value


@settings(max_examples=800)
@given(SCORES, SHARES, st.booleans())
def test_keep_and_drop_divide_the_examples(drawn, share, hardest):
    scores, values = drawn
    kept = pruning.keep(scores, share, hardest=hardest).tolist()
    left = pruning.drop(scores, share, hardest=hardest).tolist()
    assert sorted(kept + left) == list(range(len(values)))
    assert kept == sorted(kept)
    assert left == sorted(left)
    assert len(kept) == round(share * len(values))
    if kept and left:
        worst = min(rank(values[i], hardest) for i in kept)
        best = max(rank(values[i], hardest) for i in left)
        assert worst >= best


@settings(max_examples=400)
@given(SCORES, SHARES, SHARES)
def test_windows_that_meet_share_nothing_and_leave_nothing_out(drawn, first, second):
    scores, values = drawn
    low, high = sorted((first, second))
    parts = [pruning.window(scores, a, b).tolist() for a, b in ((0, low), (low, high), (high, 1))]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(len(values)))


@settings(max_examples=400)
@given(SCORES, SHARES, st.data())
def test_the_share_is_that_of_each_class(drawn, share, data):
    scores, values = drawn
    n = len(values)
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))).long()
    kept = pruning.keep(scores, share, targets=targets)
    for label in targets.unique():
        assert int((targets[kept] == label).sum()) == round(share * int((targets == label).sum()))


@settings(max_examples=500)
@given(SCORES, SHARES, st.floats(0, 1), st.integers(-1, 60))
def test_coverage_keeps_its_budget_or_says_why_not(drawn, share, beyond, strata):
    scores, values = drawn
    try:
        chosen = pruning.coverage(scores, share, drop_hardest=beyond, strata=strata)
    except ValueError as error:
        if not any(word in str(error) for word in ("scores", "strata", "share")):
            raise
        return
    assert len(chosen) == round(share * len(values))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not set(chosen.tolist()) & set(pruning.keep(scores, beyond).tolist())


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_shares_out_of_range_are_refused(share):
    for call in (pruning.keep, pruning.drop, pruning.coverage):
        with pytest.raises(ValueError, match="share"):
            call([1.0, 2.0], share)
