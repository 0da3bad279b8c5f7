"""Scores from snapshots and from many runs, against loops, exact Hessians and known cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, hessian
from torch.nn import functional as F
from torch.testing import assert_close

from memtools import scores

HISTORY = st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=1, max_size=8)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(n=6):
    torch.manual_seed(9)
    return torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))


def loss(model):
    return lambda x, y: F.cross_entropy(model(x[None]), y[None])


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_variance_of_gradients_is_that_of_a_loop(chunk_size):
    models, (inputs, targets) = [network(seed) for seed in range(4)], batch()
    expected = []
    for x, y in zip(inputs, targets, strict=True):
        maps = torch.stack([grad(lambda x, m=m, y=y: m(x)[y])(x) for m in models])
        expected.append(((maps - maps.mean(0)) ** 2).mean(0).sqrt().mean())
    found = scores.variance_of_gradients(models, inputs, targets, chunk_size=chunk_size)
    assert_close(found, torch.stack(expected))


def test_snapshots_may_be_loaded_one_after_the_other_into_one_module():
    models, (inputs, targets) = [network(seed) for seed in range(3)], batch()
    states = [model.state_dict() for model in models]
    module = network(7)

    def snapshots():
        for state in states:
            module.load_state_dict(state)
            yield module

    with torch.inference_mode():
        found = scores.variance_of_gradients(snapshots(), inputs, targets)
    assert_close(found.clone(), scores.variance_of_gradients(models, inputs, targets))
    assert scores.variance_of_gradients(models[:1] * 3, inputs, targets).eq(0).all()
    with pytest.raises(ValueError, match="snapshots must be at least 2 models, got 1"):
        scores.variance_of_gradients(models[:1], inputs, targets)


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_curvature_is_that_of_the_hessian_along_the_same_vectors(chunk_size):
    model, (inputs, targets) = network(), batch()
    step, probes = 1e-5, 3
    draw = torch.Generator().manual_seed(4)
    vectors = [2.0 * torch.randint(2, inputs.shape, generator=draw) - 1 for _ in range(probes)]
    expected = []
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        matrix = hessian(loss(model))(x, y)
        expected.append(sum((matrix @ v[i].double()).square().sum() for v in vectors) / probes)
    found = scores.curvature(
        model, inputs, targets, step=step, probes=probes, chunk_size=chunk_size,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    # One-sided differences err by the next derivative times the step: some times 1e-5.
    assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-12)


def test_curvature_of_many_probes_is_the_norm_of_the_hessian():
    model, (inputs, targets) = network(), batch(3)
    norms = [
        hessian(loss(model))(x, y).square().sum() for x, y in zip(inputs, targets, strict=True)
    ]
    found = scores.curvature(model, inputs, targets, step=1e-5, probes=2000)
    # The mean of 2000 squares whose spread is about their size.
    assert_close(found, torch.stack(norms), rtol=5 * 2000**-0.5, atol=0)


def test_curvature_draws_nothing_from_the_global_state():
    model, (inputs, targets) = network(), batch()
    state = torch.get_rng_state()
    once, again = (scores.curvature(model, inputs, targets) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(torch.get_rng_state(), state)
    own = scores.curvature(
        model, inputs, targets,
        loss_fn=lambda logits, y: F.cross_entropy(logits, y, reduction="none"),
    )  # fmt: skip
    assert torch.equal(own, once)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step must be positive, got 0.0"),
        ({"step": math.nan}, "step must be positive, got nan"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"loss_fn": F.cross_entropy}, "reduction"),
    ],
)
def test_curvature_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        scores.curvature(network(), *batch(), **options)


def test_coupled_examples_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    with pytest.raises(ValueError, match="BatchNorm"):
        scores.curvature(model, *batch())
    with pytest.raises(ValueError, match="BatchNorm"):
        scores.variance_of_gradients([model, model], *batch())


@given(st.lists(HISTORY, min_size=1, max_size=4))
def test_forgetting_time_is_when_an_example_is_wrong_for_good(histories):
    width = max(map(len, histories))
    padded = torch.tensor([row + [math.nan] * (width - len(row)) for row in histories])
    expected = []
    for row in histories:
        known = [value for value in row if not math.isnan(value)]
        if not known:
            expected.append(math.nan)
        else:
            wrong_from = len(known)
            while wrong_from and known[wrong_from - 1] == 0:
                wrong_from -= 1
            expected.append(math.inf if wrong_from == len(known) else wrong_from + 1)
    found = scores.forgetting_time(padded)
    assert_close(found, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


RUNS = st.integers(1, 4).flatmap(
    lambda n: st.lists(
        st.tuples(*[st.lists(st.integers(0, 1), min_size=n, max_size=n)] * 2), min_size=1
    )
)


@given(RUNS)
def test_memorization_is_a_difference_of_shares(runs):
    correct, included = (torch.tensor(x) for x in zip(*runs, strict=True))
    found = scores.memorization(correct, included.bool())
    for i in range(correct.shape[1]):
        with_it = [c[i] for c, s in runs if s[i]]
        without = [c[i] for c, s in runs if not s[i]]
        if not with_it or not without:
            assert found.estimate[i].isnan()
            assert found.standard_error[i].isnan()
            continue
        p, q = sum(with_it) / len(with_it), sum(without) / len(without)
        error = math.sqrt(p * (1 - p) / len(with_it) + q * (1 - q) / len(without))
        assert float(found.estimate[i]) == pytest.approx(p - q)
        assert float(found.standard_error[i]) == pytest.approx(error)


def test_memorization_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"of one shape \(R, n\), got \(2,\) and \(2,\)"):
        scores.memorization(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 3\)"):
        scores.memorization(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^included must hold zeros and ones, got other values"):
        scores.memorization(torch.ones(2, 2), torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"^correct must hold zeros and ones"):
        scores.memorization(torch.full((2, 2), torch.nan), torch.ones(2, 2))
