"""Noise in any data set, and a ledger of any updates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memtools
from memtools.data import Tensors, random_inputs, random_labels
from tests.properties.tensors import FLOATS, any_number, batches

SEEDS = st.integers(0, 2**32)


@settings(max_examples=400)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.floats(0, 1),
    st.sampled_from(["uniform", "other", "permuted"]),
    SEEDS,
)
def test_random_labels_touch_the_share_they_say(labels, fraction, mode, seed):
    targets = torch.tensor(labels)
    data = Tensors(torch.zeros(len(labels), 2), targets)
    noisy = random_labels(data, fraction, mode=mode, seed=seed, num_classes=6)
    assert int(noisy.is_corrupted.sum()) == round(fraction * len(labels))
    assert torch.equal(noisy.clean_targets, targets)
    assert torch.equal(noisy.targets[~noisy.is_corrupted], targets[~noisy.is_corrupted])
    assert bool(((noisy.targets >= 0) & (noisy.targets < 6)).all())
    if mode == "other":
        assert bool((noisy.targets != targets)[noisy.is_corrupted].all())
    if mode == "permuted":
        assert sorted(noisy.targets.tolist()) == sorted(labels)
    again = random_labels(data, fraction, mode=mode, seed=seed, num_classes=6)
    assert torch.equal(noisy.targets, again.targets)


@settings(max_examples=300)
@given(batches(), st.floats(0, 1), st.sampled_from(["all", "channel", "element"]), SEEDS)
def test_random_inputs_are_finite_where_their_statistics_are(inputs, fraction, statistics, seed):
    inputs = inputs.detach()
    data = Tensors(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    try:
        noisy = random_inputs(data, fraction, statistics=statistics, seed=seed)
    except ValueError:
        assert float(inputs.double().abs().max()) > 1e30  # their squares are beyond float32
        return
    for i in range(len(inputs)):
        value, _, _ = noisy[i]
        assert value.dtype == inputs.dtype
        if not noisy.is_corrupted[i]:
            assert torch.equal(value, inputs[i])
        else:
            assert torch.equal(value, noisy[i][0])
            assert not bool(value.isnan().any())


@settings(max_examples=400)
@given(batches(elements=any_number, dtypes=FLOATS), st.data())
def test_a_ledger_counts_what_it_took_and_nothing_of_what_it_refused(logits, data):
    n = len(logits)
    places = st.integers(-2, 9) | st.floats(-1, 8) | st.just(math.nan)
    indices = data.draw(st.lists(places, min_size=n, max_size=n) | st.lists(places, max_size=3))
    ledger = memtools.Ledger(8)
    ledger.update([0, 1], logits=torch.eye(2), targets=torch.tensor([0, 1]))
    targets = torch.zeros(n, dtype=torch.int64)
    fits = (
        len(indices) == n
        and all(isinstance(i, int) and 0 <= i < 8 for i in indices)
        and bool(logits.isfinite().all())
    )
    try:
        ledger.update(indices, logits=logits.detach(), targets=targets)
    except (ValueError, TypeError, IndexError) as error:
        if not any(word in str(error) for word in ("indices", "logits", "targets")):
            raise
        assert ledger.presentations.sum() == 2
    else:
        assert fits or bool(logits.isfinite().all())
        assert ledger.presentations.sum() == 2 + n


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_fractions_out_of_range_are_refused(fraction):
    data = Tensors(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    for function in (random_labels, random_inputs):
        with pytest.raises(ValueError, match="fraction"):
            function(data, fraction)
