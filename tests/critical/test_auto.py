"""The thorough search: what it finds, what it takes, and what it leaves out."""

import math

import pytest
import torch
from torch import nn

from memtools import find_critical, linear_reach
from memtools.critical import Screening
from memtools.critical.auto import LEAST_REACH
from memtools.critical.streams import seed_of, stream_keys, uniform


def linear(classes, d=6, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(d, classes).double()


def batch(n=200, d=6, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def truth(model, inputs, radius, low=-math.inf, high=math.inf):
    """Whether a linear model has another class in the box, from the formula: the best corner."""
    weight, logits = model.weight.detach(), model(inputs).detach()
    predicted = logits.argmax(1)
    bottom, top = (inputs - radius).clamp(min=low), (inputs + radius).clamp(max=high)
    critical = torch.zeros(len(inputs), dtype=torch.bool)
    for i, k in enumerate(predicted.tolist()):
        for c in range(len(weight)):
            slope = weight[c] - weight[k]
            corner = torch.where(slope > 0, top[i], bottom[i])
            critical[i] |= bool(logits[i, c] - logits[i, k] + slope @ (corner - inputs[i]) > 0)
    return critical


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize("radius", [0.03, 0.3, torch.tensor([0.0, 0.1, 0.2, 0.0, 0.5, 1.0])])
@pytest.mark.parametrize("bounds", [None, (-1.5, 1.6)])
def test_linear_models(classes, radius, bounds):
    """All other classes of six are surveyed, and the best corner is tried."""
    model, inputs = linear(classes), batch().clamp(-1.5, 1.6)
    search = find_critical(model, inputs, radius=radius, bounds=bounds, method="auto")
    expected = truth(model, inputs, radius, *(bounds or (-math.inf, math.inf)))
    assert torch.equal(search.is_critical, expected)
    assert 0 < search.ratio < 1
    assert (search.first_step[expected] == 1).all()


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("times", [0.5, 1.0, 1.5])
def test_no_fewer_than_lass(trained, bounds, times):
    model, inputs, radius = trained
    box = {"radius": times * radius, "bounds": bounds}
    lass = find_critical(model, inputs, **box)
    search = find_critical(model, inputs, method="auto", **box)
    # Both are searches: an example at the edge may fall to one alone, and which ones are at the
    # edge depends on how the processor rounded the training. `bench.critical` judges by thousands.
    assert search.is_critical.sum() >= lass.is_critical.sum() - 1
    assert search.evaluations < lass.evaluations


def test_more_effort_only_adds(trained):
    """Where all classes are surveyed and searches are of full length, more attempts are made."""
    model, inputs, radius = trained
    model, inputs = model.double(), inputs.double()
    before, passes = torch.zeros(len(inputs), dtype=torch.bool), 0
    for effort in (1, 2, 5):
        search = find_critical(model, inputs, radius=radius, method="auto", effort=effort)
        assert not (before & ~search.is_critical).any()
        assert search.evaluations >= passes
        assert search.max_steps == 50 * effort
        before, passes = search.is_critical, search.evaluations
    quick = find_critical(model, inputs, radius=radius, method="auto", effort=0.1)
    assert 0.75 * before.sum() <= quick.is_critical.sum() <= before.sum()


@pytest.mark.parametrize("effort", [0.1, 0.13, 0.3, 1, 2.5])
@pytest.mark.parametrize("saturated", [False, True])
def test_no_example_takes_more_than_the_effort_allows(trained, networks, effort, saturated):
    model, inputs, radius = trained
    if saturated:
        model = nn.Sequential(model, nn.Hardtanh(-1e-3, 1e-3))
    inputs, radius = networks.numbered(inputs, radius)
    counted = networks.Counted(nn.Sequential(nn.Unflatten(1, (1, 6, 6)), model))
    find_critical(counted, inputs, radius=radius, method="auto", effort=effort, batch_size=32)
    # Up to 16 examples a pass are for rounding and coupling; the search begins with 32.
    passes = counted.of_each(len(inputs), at_least=32)
    assert passes.max() <= 100 * effort
    assert passes.max() >= 5
    assert passes.min() >= 4  # the example, and the slopes of three classes


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 1, "max_steps": 5}, {"batch_size": 7, "max_steps": 9}]
)
def test_evaluations_are_counted_right(method, trained, networks, options):
    model, inputs, radius = trained
    inputs, radius = networks.numbered(inputs[:30], radius)
    counted = networks.Counted(nn.Sequential(nn.Unflatten(1, (1, 6, 6)), model))
    search = find_critical(counted, inputs, radius=radius, method=method, **options)
    assert search.evaluations == counted.total()


def test_most_examples_take_a_handful_of_passes(trained, networks):
    model, inputs, radius = trained
    inputs, radius = networks.numbered(inputs, radius / 8)
    counted = networks.Counted(nn.Sequential(nn.Unflatten(1, (1, 6, 6)), model))
    find_critical(counted, inputs, radius=radius, method="auto", batch_size=32)
    assert counted.of_each(len(inputs), at_least=32).median() <= 6


def audited_of(inputs, seed=0):
    """Which examples are audited if they are far, from the documented choice by content."""
    keys = stream_keys(inputs, seed_of(torch.Generator().manual_seed(seed)))
    return uniform(keys, 1) < 0.05


def test_what_is_left_out(networks):
    model, _, _ = networks.trained("MLP")
    inputs = torch.rand(1500, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    inputs, radius = networks.numbered(inputs, 0.03)
    counted = networks.Counted(nn.Sequential(nn.Unflatten(1, (1, 6, 6)), model))
    search = find_critical(counted, inputs, radius=radius, method="auto", batch_size=256)
    assert search.screening is not None
    far = linear_reach(counted.model, inputs[:, 1:], radius=0.03) < LEAST_REACH
    assert search.screening.left_out == far.sum()
    audited = far & audited_of(inputs)
    assert search.screening.audited == audited.sum()
    assert search.screening.missed == (search.is_critical & audited).sum()
    # A twentieth, within four standard deviations.
    assert abs(audited.sum() - 0.05 * far.sum()) < 4 * math.sqrt(0.05 * float(far.sum()))
    assert not search.is_critical[far & ~audited].any()
    passes = counted.of_each(len(inputs), at_least=200)
    surveyed = 1 + networks.CLASSES - 1
    assert (passes[far & ~audited] == surveyed).all()
    assert (passes[audited] > 40).all()
    assert (passes[~far] > surveyed).all()


def test_who_is_audited_does_not_depend_on_order_but_on_the_seed(networks):
    model, _, _ = networks.trained("MLP")
    inputs = torch.rand(600, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    counts = []
    for seed in (0, 1, 2):
        searches = [
            find_critical(
                model,
                x,
                radius=0.02,
                method="auto",
                generator=torch.Generator().manual_seed(seed),
            )
            for x in (inputs, inputs.flip(0))
        ]
        screening, other = (search.screening for search in searches)
        assert screening is not None
        assert screening == other
        counts.append(screening.audited)
    assert len(set(counts)) > 1


def test_nothing_is_left_out_where_all_are_near(networks):
    model, inputs, _ = networks.trained("MLP")
    assert find_critical(model, inputs, radius=0.6, method="auto").screening is None


@pytest.mark.parametrize(
    ("audited", "missed", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (59, 0, 1 - 0.05 ** (1 / 59)), (1, 0, 0.95)],
)
def test_highest_miss_rate_in_closed_form(audited, missed, expected):
    screening = Screening(10 * audited, audited, missed)
    assert screening.highest_miss_rate == pytest.approx(expected, rel=1e-9)
    if audited:
        assert screening.miss_rate == missed / audited
    else:
        assert math.isnan(screening.miss_rate)


@pytest.mark.parametrize(("audited", "missed"), [(20, 1), (100, 7), (2000, 5), (2000, 400)])
def test_highest_miss_rate_is_that_of_clopper_and_pearson(audited, missed):
    beta = pytest.importorskip("scipy.stats").beta
    screening = Screening(20 * audited, audited, missed)
    expected = float(beta.ppf(0.95, missed + 1, audited - missed))
    assert screening.highest_miss_rate == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_softmax_head_changes_nothing(method, trained, dtype):
    model, inputs, radius = trained
    model, inputs = model.to(dtype), inputs.to(dtype)
    logits = find_critical(model, inputs, radius=radius, method=method)
    for head in (nn.Softmax(1), nn.LogSoftmax(1)):
        search = find_critical(nn.Sequential(model, head), inputs, radius=radius, method=method)
        assert torch.equal(search.is_critical, logits.is_critical)
        assert torch.equal(search.predicted, logits.predicted)


class Plateaus(nn.Module):
    """Logits without slope almost everywhere."""

    def forward(self, x):
        step = (1000 * x[:, 0]).clamp(-1, 1)
        return torch.stack([step, -step], 1)


def test_a_saturated_model_is_searched_and_not_screened(networks):
    inputs = torch.linspace(0.1, 1, 40)[:, None].repeat(1, 3)
    assert (linear_reach(Plateaus(), inputs, radius=0.5) == torch.inf).all()
    inputs, radius = networks.numbered(inputs, 0.5)
    counted = networks.Counted(Plateaus())
    search = find_critical(counted, inputs, radius=radius, method="auto", batch_size=32)
    assert search.screening is None
    # Two passes for the slopes, one for the corner, two each for a climb and for one from another
    # start: without a slope both end where they begin.
    assert (counted.of_each(40, at_least=32)[~search.is_critical] >= 2 + 1 + 2 + 2).all()
    # Random starts reach what is behind the step in a good part of the boxes; no other is there.
    assert not search.is_critical[inputs[:, 1] >= 0.5].any()
    assert search.is_critical.any()


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_any_number_of_classes(method, classes, networks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = networks.mlp(6, classes, width=40)
    inputs = batch(50).float()
    search = find_critical(model, inputs, radius=0.1, method=method)
    networks.assert_sound(model, inputs, search, 0.1)
    assert 0 < search.ratio < 1


@pytest.mark.parametrize("max_steps", [1, 2, 7])
def test_points_that_are_tried(trained, max_steps):
    model, inputs, radius = trained
    model, inputs = model.double(), inputs.double()
    whole = find_critical(model, inputs, radius=radius, method="auto")
    short = find_critical(model, inputs, radius=radius, method="auto", max_steps=max_steps)
    assert short.max_steps == max_steps
    within = (whole.first_step >= 1) & (whole.first_step <= max_steps)
    assert torch.equal(short.is_critical, within)
    curve = whole.ratio_by_step()
    assert len(curve) == whole.max_steps + 1 == 51
    assert curve[max_steps] == short.ratio
    assert curve[-1] == whole.ratio
    assert (curve.diff() >= 0).all()


@pytest.mark.parametrize("certify", [False, True])
def test_time_limit(method, trained, networks, certify):
    """What was found until then is true, and that there may be more is said."""
    model, inputs, radius = trained
    options = {"radius": radius, "method": method, "batch_size": 16}
    search = find_critical(model, inputs, time_limit=1e-9, certify=certify, **options)
    assert not search.is_complete
    networks.assert_sound(model, inputs, search, radius)
    whole = find_critical(model, inputs, time_limit=1e9, **options)
    assert whole.is_complete
    assert search.evaluations < whole.evaluations
    assert search.ratio <= whole.ratio
    seen = search.predicted >= 0
    assert torch.equal(search.predicted[seen], whole.predicted[seen])
    if search.is_certified is not None:
        assert not (search.is_certified & whole.is_critical).any()


def test_an_effort_out_of_range(networks):
    model, inputs, _ = networks.trained("MLP")
    for effort in (0.05, 0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"effort must be a number from 0\.1, got"):
            find_critical(model, inputs, radius=0.1, method="auto", effort=effort)


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("lass", {"effort": 1.0}, r'effort has no .* method="lass", got 1\.0; .*method="auto"'),
        ("auto", {"noise": 0.1}, r'noise has no meaning for method="auto", got 0\.1; .*"lass"'),
        ("auto", {"step_size": 0.1}, r'step_size has no meaning for method="auto"'),
        ("auto", {"gradient_at": "start"}, r'gradient_at has no meaning for method="auto"'),
        ("auto", {"time_limit": 0}, r"time_limit must be a number of seconds above 0, got 0"),
        ("auto", {"time_limit": math.nan}, r"time_limit must be a number .*, got nan"),
    ],
)
def test_options_of_the_other_method(networks, method, options, text):
    model, inputs, _ = networks.trained("MLP")
    with pytest.raises(ValueError, match=text):
        find_critical(model, inputs, radius=0.1, method=method, **options)
