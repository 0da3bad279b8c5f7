"""The sketch estimates norms: how far off it is follows from the number of its projections."""

import math

import pytest
import torch

import memtools

SETTINGS = {"momentum": "momentum", "adam": "adam, all"}


def standard_error(p, projections):
    """Relative, of one norm.

    p = 2: the mean of squares of Gaussians has the relative deviation sqrt(2 / m), its root half.
    p = 1: the median of sizes of Cauchy numbers, whose density there is 1 / pi, has that of
    1 / (2 sqrt(m) / pi).
    """
    return math.sqrt(1 / (2 * projections)) if p == 2 else math.pi / 2 / math.sqrt(projections)


@pytest.fixture(params=list(SETTINGS))
def recorded(request, cases):
    case = cases.build("relu", SETTINGS[request.param])
    return (case.x, case.y), cases.train(case, tape={}).tape


def errors(tape, data, p, projections, **options):
    """Relative to the norms, of those that are not 0."""
    exact = memtools.loss_sensitivity(tape, data, p=p, **options)
    found = memtools.loss_sensitivity(tape, data, p=p, sketch=projections, **options)
    assert found.shape == exact.shape
    assert found.dtype == exact.dtype
    is_zero = exact == 0
    assert (found[is_zero] == 0).all()
    return (found / exact - 1)[~is_zero]


@pytest.mark.parametrize("p", [1, 2])
def test_it_is_within_a_few_standard_errors(p, recorded):
    data, tape = recorded
    for projections in (100, 1000):
        off = errors(tape, data, p, projections) / standard_error(p, projections)
        assert off.square().mean().sqrt() < 2
        assert off.abs().max() < 5


@pytest.mark.parametrize("p", [1, 2])
def test_more_projections_are_nearer(p, recorded):
    data, tape = recorded
    few, many = (errors(tape, data, p, m).square().mean().sqrt() for m in (16, 1024))
    assert many < few / 3  # 8 where the luck is equal


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("part", ["direct", "indirect"])
def test_parts(p, part, recorded):
    data, tape = recorded
    off = errors(tape, data, p, 400, part=part) / standard_error(p, 400)
    assert off.abs().max() < 5


def test_of_the_loss_of_other_data(recorded, cases):
    data, tape = recorded
    other = cases.draw(5, 4, seed=9), data[1][:5]
    off = errors(tape, data, 2, 400, objective=other) / standard_error(2, 400)
    assert off.abs().max() < 5


def test_two_calls_agree_in_every_bit_and_leave_the_random_state(recorded):
    data, tape = recorded
    before = torch.get_rng_state()
    first, second = (memtools.loss_sensitivity(tape, data, sketch=10) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_sketch_of_the_largest_element(recorded):
    data, tape = recorded
    with pytest.raises(ValueError, match="sketch"):
        memtools.loss_sensitivity(tape, data, p=math.inf, sketch=10)


@pytest.mark.parametrize("projections", [0, -1])
def test_at_least_one_projection(projections, recorded):
    data, tape = recorded
    with pytest.raises(ValueError, match="sketch"):
        memtools.loss_sensitivity(tape, data, sketch=projections)


def test_no_sketch_of_a_sign(recorded):
    data, tape = recorded
    with pytest.raises(ValueError, match="sketch"):
        memtools.loss_sensitivity(tape, data, sketch=10, signed=True)
