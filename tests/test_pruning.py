"""What is kept and what is suspect, against plain sorting."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtools import Ledger, pruning
from memtools.suspects import label_issues, suspects

SCORES = st.lists(
    st.integers(-3, 3).map(float) | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=12
)


def sorted_indices(scores, hardest):
    def key(i):
        value = -scores[i] if hardest else scores[i]
        return (math.isnan(value), 0 if math.isnan(value) else value, i)

    return sorted(range(len(scores)), key=key)


def of_classes(order, classes):
    """The order of all, or the order of each class."""
    if classes is None:
        return [order]
    return [[i for i in order if classes[i] == c] for c in sorted(set(classes))]


@given(SCORES, st.floats(0, 1), st.booleans(), st.booleans())
def test_a_share_is_kept_or_dropped(scores, share, hardest, by_class):
    classes = [i % 3 for i in range(len(scores))] if by_class else None
    expected = sorted(
        i
        for order in of_classes(sorted_indices(scores, hardest), classes)
        for i in order[: round(share * len(order))]
    )
    options = {"hardest": hardest, "targets": classes}
    assert pruning.keep(scores, share, **options).tolist() == expected
    left = sorted(set(range(len(scores))) - set(expected))
    assert pruning.drop(scores, share, **options).tolist() == left


@given(SCORES, st.integers(-3, 3), st.booleans())
def test_a_threshold_is_kept_or_dropped(scores, threshold, hardest):
    expected = [i for i, s in enumerate(scores) if (s >= threshold if hardest else s <= threshold)]
    options = {"threshold": threshold, "hardest": hardest}
    assert pruning.keep(scores, **options).tolist() == expected
    left = sorted(set(range(len(scores))) - set(expected))
    assert pruning.drop(scores, **options).tolist() == left


def test_high_scores_are_kept_and_dropped_if_nothing_is_said():
    assert pruning.keep([1.0, 2.0, 3.0, 4.0], 0.25).tolist() == [3]
    assert pruning.drop([1.0, 2.0, 3.0, 4.0], 0.25).tolist() == [0, 1, 2]


def test_what_has_no_score_comes_after_what_has_the_least():
    assert pruning.keep([math.nan, -math.inf], 0.5).tolist() == [1]
    assert pruning.keep([math.nan, math.inf], 0.5, hardest=False).tolist() == [1]
    assert pruning.window([-math.inf, math.nan], 0, 0.5).tolist() == [1]  # NaN is the easiest


@given(SCORES, st.lists(st.floats(0, 1), max_size=4), st.booleans())
def test_windows_that_meet_share_nothing_and_leave_nothing_out(scores, cuts, by_class):
    targets = [i % 2 for i in range(len(scores))] if by_class else None
    cuts = [0.0, *sorted(cuts), 1.0]
    windows = [pruning.window(scores, a, b, targets=targets) for a, b in pairwise(cuts)]
    assert sorted(torch.cat(windows).tolist()) == list(range(len(scores)))
    if targets is None:
        harder = pruning.keep(scores, 1 - cuts[1])
        easier = set(windows[0].tolist())
        assert len(easier & set(harder.tolist())) <= 1  # both numbers are rounded


@given(SCORES, st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_window_goes_from_the_easiest_to_the_hardest(scores, a, b, by_class):
    classes = [i % 3 for i in range(len(scores))] if by_class else None
    begin, end = min(a, b), max(a, b)
    expected = sorted(
        i
        for order in of_classes(sorted_indices(scores, True)[::-1], classes)
        for i in order[round(begin * len(order)) : round(end * len(order))]
    )
    assert pruning.window(scores, begin, end, targets=classes).tolist() == expected


def test_the_largest_score_is_in_the_last_stratum():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return pruning.coverage(range(20), 0.1, strata=1, generator=generator).tolist()

    assert not all(19 in draw(seed) for seed in range(8))  # as if it were one of its own


def test_there_are_fifty_strata():
    scores = torch.rand(300, generator=torch.Generator().manual_seed(0))
    found = pruning.coverage(scores, 0.5)
    assert torch.equal(found, pruning.coverage(scores, 0.5, strata=50))
    assert not torch.equal(found, pruning.coverage(scores, 0.5, strata=51))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.floats(0, 0.5), st.integers(1, 9))
def test_coverage_takes_the_budget_and_leaves_the_hardest(scores, share, strata):
    found = pruning.coverage(scores, share, drop_hardest=0.4, strata=strata)
    allowed = set(pruning.drop(scores, 0.4).tolist())
    assert len(found) == len(set(found.tolist())) == round(share * len(scores))
    assert set(found.tolist()) <= allowed
    assert found.tolist() == sorted(found.tolist())
    again = pruning.coverage(scores, share, drop_hardest=0.4, strata=strata)
    assert torch.equal(found, again)


def test_coverage_is_even_where_scores_are_not():
    scores = torch.cat([torch.zeros(900), torch.arange(0.005, 1, 0.01)])
    places = (scores[pruning.coverage(scores, 0.05, strata=10)] * 10).long().clamp_max(9)
    assert places.bincount().tolist() == [5] * 10


def test_coverage_takes_all_that_there_is_room_for():
    assert pruning.coverage([0.0, 1.0, 2.0, 3.0], 0.75, drop_hardest=0.25).tolist() == [0, 1, 2]
    assert pruning.coverage([5.0, 5.0], 1.0, strata=1).tolist() == [0, 1]
    assert pruning.coverage([0.0, 1.0], 0.0).tolist() == []


def test_coverage_draws_from_its_generator_alone():
    def draw(seed):
        return pruning.coverage(range(100), 0.1, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), pruning.coverage(range(100), 0.1))
    assert not torch.equal(draw(0), draw(1))


def test_strata_are_of_equal_width_from_the_least_score_to_the_largest():
    scores = [10.0, 10.9, 11.1, 12.0]  # two strata of width 1, one example of each
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        low, high = pruning.coverage(scores, 0.5, strata=2, generator=generator).tolist()
        assert low in (0, 1)
        assert high in (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruning.keep([1.0]), "one of share and threshold must be given, got share=None"),
        (lambda: pruning.keep([1.0], 0.5, threshold=1), "one of share and threshold must be given"),
        (lambda: pruning.keep([1.0], 1.5), "share must lie between 0 and 1, got 1.5"),
        (lambda: pruning.keep([1.0], math.nan), "share must lie between 0 and 1, got nan"),
        (lambda: pruning.drop([[1.0]], 0.5), r"scores must be real numbers of shape \(n,\)"),
        (lambda: pruning.keep([1.0], 0.5, targets=[1, 2]), "one entry for each of the 1 scores"),
        (
            lambda: pruning.keep([1.0], threshold=1, targets=[1]),
            "^targets must be None with a thre",
        ),
        (lambda: pruning.window([1.0], -0.1, 0.2), "begin must lie between 0 and 1, got -0.1"),
        (lambda: pruning.window([1.0], 0.1, 1.2), "end must lie between 0 and 1, got 1.2"),
        (lambda: pruning.keep([1j], 0.5), "scores must be real numbers .* got torch.complex64"),
        (lambda: pruning.coverage([1.0], 1.2), "share must lie between 0 and 1, got 1.2"),
        (lambda: pruning.coverage([1.0], 0.2, drop_hardest=2), "drop_hardest must lie between"),
        (lambda: pruning.window([1.0], 0.5, 0.2), "begin must not lie after end, got 0.5 and 0.2"),
        (lambda: pruning.coverage([math.nan], 0.5), "^scores must be finite, got NaN or infinity"),
        (lambda: pruning.coverage([1.0], 0.9, drop_hardest=1), "share must leave room for"),
        (lambda: pruning.coverage([1.0], 0.9, strata=0), "strata must be at least 1, got 0"),
        (lambda: suspects({"csl": [1.0]}), "scores lack aum, confidence, correctness, present"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def trained():
    """Example 1 is always taken for another class, 2 at first, 3 never seen."""
    ledger = Ledger(4)
    for second in (-1.0, 3.0, 3.0):
        logits = torch.tensor([[2.0, 0.0], [0.0, 4.0], [second, 0.0]])
        ledger.update([0, 1, 2], logits=logits, targets=torch.tensor([0, 0, 0]))
    return ledger


def test_suspects_are_those_with_a_negative_mean_margin():
    table = trained().scores()
    found = suspects(table, labels=[7, 8, 9, 0])
    assert found["index"].tolist() == [1]
    assert found["label"].tolist() == [8]
    assert found["score"].tolist() == [table["csl"][1]]
    assert found["reason"][0].startswith("right at 0 of 3 presentations, mean probability")


def test_a_share_of_suspects_is_in_the_order_of_the_losses():
    table = trained().scores()
    assert suspects(table, share=0.5)["index"].tolist() == [1, 2]
    assert suspects(table, share=1)["index"].tolist() == [1, 2, 0]  # of one nothing is known
    assert suspects(table, share=0)["index"].tolist() == []
    for share in (-1, 1.5):
        with pytest.raises(ValueError, match=f"share must lie between 0 and 1, got {share}"):
            suspects(table, share=share)


def test_a_reason_is_in_numbers_that_anyone_can_check():
    table = trained().scores()
    (reason,) = suspects(table)["reason"]
    assert reason == "right at 0 of 3 presentations, mean probability of the label 0.02"
    assert suspects(table, share=0.5)["reason"][1].startswith("right at 2 of 3 presentations, ")


def columns(losses, margins):
    halves = np.full(len(losses), 0.5)
    counts = np.full(len(losses), 2)
    told = {"confidence": halves, "correctness": halves, "presentations": counts}
    return {"csl": np.asarray(losses), "aum": np.asarray(margins), **told}


def test_a_margin_of_zero_is_no_suspicion():
    found = suspects(columns([1.0, 2.0, 3.0], [0.0, 0.5, -0.1]))
    assert found["index"].tolist() == [2]
    assert found["reason"].dtype == object  # of strings of any length


def test_of_equal_losses_the_lower_index_is_first():
    found = suspects(columns([1.0, 2.0] * 100, [-1.0] * 200))
    assert found["index"].tolist() == [*range(1, 200, 2), *range(0, 200, 2)]


def test_columns_are_those_that_there_is_something_for():
    table = trained().scores()
    assert suspects(table).keys() == {"index", "score", "reason"}
    issues = label_issues(table, [3, 4, 5, 6])
    assert issues.keys() == {"is_label_issue", "label_score", "given_label"}
    assert issues["given_label"].tolist() == [3, 4, 5, 6]
    assert np.isnan(issues["label_score"][3])


def test_label_issues_have_the_columns_of_cleanlab():
    pandas = pytest.importorskip("pandas")
    table = trained().scores()
    frame = pandas.DataFrame(label_issues(table, [0, 0, 0, 0], predictions=[0, 1, 0, 1]))
    assert frame["is_label_issue"].tolist() == [False, True, False, False]
    assert frame["label_score"][0] == np.float32(table["confidence"][0])
    assert frame["predicted_label"].tolist() == [0, 1, 0, 1]
    cleanlab = pytest.importorskip("cleanlab.classification")
    names = cleanlab.CleanLearning.find_label_issues.__doc__
    assert all(f"*{name}*" in names for name in ("is_label_issue", "given_label"))
    for call in (lambda: label_issues(table, [0]), lambda: suspects(table, labels=[0])):
        with pytest.raises(ValueError, match="labels must have one entry for each of 4 examples"):
            call()
    with pytest.raises(ValueError, match="predictions must have one entry for each of 4"):
        label_issues(table, [0, 0, 0, 0], predictions=[[0], [0], [0], [0]])
