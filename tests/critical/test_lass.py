import pytest
import torch
from memtools_kernels import box_noise
from torch import nn

from memtools import critical_sample_ratio, find_critical, seeds
from memtools.critical.streams import seed_of, stream_keys

RADIUS = 0.4


def network(seed=0, *, shape=(6,), classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(torch.Size(shape).numel(), 16),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(16, classes),
        ).double()


def batch(n=40, shape=(6,), seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).double()


def noise_of(inputs, steps, generator=None):
    """Noise of each step, for each example."""
    keys, d = stream_keys(inputs, seed_of(generator)), inputs[0].numel()
    numbers = [torch.full_like(keys, step) for step in range(steps)]
    return [box_noise(keys, step, d).reshape(inputs.shape).to(inputs.dtype) for step in numbers]


def assert_sound(
    model,
    inputs,
    search,
    radius,
    low: float | torch.Tensor = -torch.inf,
    high: float = torch.inf,
):
    """What a search reports is in the box and in the bounds, and is of another class."""
    model = model.eval()
    with torch.no_grad():
        flipped = model(search.points).argmax(1) != model(inputs).argmax(1)
    assert torch.equal(flipped, search.is_critical)
    rounding = 2 * torch.finfo(inputs.dtype).eps * inputs.abs().max()
    assert ((search.points - inputs).abs() <= radius + rounding).all()
    assert ((low <= search.points) & (search.points <= high)).all()
    assert torch.equal(search.points[~search.is_critical], inputs[~search.is_critical])
    assert torch.equal(search.is_critical, search.first_step != -1)
    assert search.first_step[search.is_critical].ge(1).all()
    assert search.first_step.le(search.max_steps).all()


@pytest.mark.parametrize("gradient_at", ["moving", "start"])
@pytest.mark.parametrize("bounds", [None, (-2.5, 2.6)])
def test_agrees_with_a_loop_over_examples(oracles, gradient_at, bounds):
    model, inputs = network(), batch().clamp(-2.5, 2.5)
    search = find_critical(
        model,
        inputs,
        radius=RADIUS,
        max_steps=12,
        gradient_at=gradient_at,
        bounds=bounds,
    )
    first_step, points = oracles.lass(
        model.eval(),
        inputs,
        noise_of(inputs, 12),
        alpha=RADIUS * 0.25 / 0.3,
        beta=RADIUS * 0.2 / 0.3,
        radius=RADIUS,
        max_steps=12,
        gradient_at=gradient_at,
        **({} if bounds is None else dict(zip(("low", "high"), bounds, strict=True))),
    )
    assert torch.equal(search.first_step, first_step)
    torch.testing.assert_close(search.points, points, rtol=oracles.FLOAT64, atol=1e-12)
    # The set has all kinds: found at once, found later, not found.
    assert (first_step == 1).any()
    assert (first_step > 1).any()
    assert (first_step == -1).any()


def test_the_two_places_of_the_gradient_differ():
    """One takes the gradient again after each step, the other keeps the first."""
    model, inputs = network(), batch()
    moving = find_critical(model, inputs, radius=RADIUS, noise=0, gradient_at="moving")
    start = find_critical(model, inputs, radius=RADIUS, noise=0, gradient_at="start")
    assert not torch.equal(moving.first_step, start.first_step)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 3)])
def test_whatever_is_found_is_true(shape):
    model, inputs = network(shape=shape), batch(shape=shape)
    if shape == ():
        model[0] = nn.Unflatten(0, (-1, 1))
    search = find_critical(model, inputs, radius=RADIUS, max_steps=20)
    assert_sound(model, inputs, search, RADIUS)
    assert search.points.shape == inputs.shape
    assert 0 < search.ratio < 1


def test_float32_is_sound_as_well():
    model, inputs = network().float(), batch().float()
    search = find_critical(model, inputs, radius=RADIUS, max_steps=20)
    assert search.points.dtype == torch.float32
    assert_sound(model, inputs, search, RADIUS)


def test_linear_model_where_the_answer_is_known():
    """A flip exists exactly where the margin is below the radius times the l1 norm of the weights.

    With one step to the corner of the box and no noise, the search finds each of them.
    """
    torch.manual_seed(0)
    model, inputs = nn.Linear(5, 2).double(), batch(200, (5,))
    logits = model(inputs)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    reach = RADIUS * (model.weight[0] - model.weight[1]).abs().sum()
    expected = margin < reach
    assert 0 < expected.double().mean() < 1
    search = find_critical(model, inputs, radius=RADIUS, step_size=2 * RADIUS, noise=0)
    assert torch.equal(search.is_critical, expected)
    assert (search.first_step[expected] == 1).all()
    noisy = find_critical(model, inputs, radius=RADIUS)
    assert not (noisy.is_critical & ~expected).any()
    assert noisy.ratio > 0.9 * search.ratio


def test_channels_with_a_radius_of_their_own():
    """Where the radius of a channel is 0, nothing moves."""
    shape = (2, 3, 3)
    model, inputs = network(shape=shape), batch(shape=shape)
    radius = torch.tensor([0.0, 0.5]).reshape(2, 1, 1)
    search = find_critical(model, inputs, radius=radius, max_steps=20)
    assert_sound(model, inputs, search, radius)
    assert search.is_critical.any()
    assert torch.equal(search.points[:, 0], inputs[:, 0])
    same = find_critical(model, inputs, radius=torch.full((2, 1, 1), 0.5), max_steps=20)
    number = find_critical(model, inputs, radius=0.5, max_steps=20)
    assert torch.equal(same.points, number.points)


def test_bounds_hold_for_each_channel():
    shape = (2, 3, 3)
    model, inputs = network(shape=shape), batch(shape=shape).clamp(-1, 1)
    low, high = torch.tensor([-1.0, -1.2]).reshape(2, 1, 1), 1.0
    search = find_critical(model, inputs, radius=RADIUS, bounds=(low, high), max_steps=20)
    assert_sound(model, inputs, search, RADIUS, low, high)
    assert search.is_critical.any()
    assert (search.points[:, 1] < -1).any()


def test_defaults_keep_the_ratios_of_the_paper():
    model, inputs = network(), batch()
    default = find_critical(model, inputs, radius=0.3, max_steps=5)
    spelled = find_critical(model, inputs, radius=0.3, step_size=0.25, noise=0.2, max_steps=5)
    torch.testing.assert_close(default.points, spelled.points)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_batch_size_changes_nothing(batch_size):
    model, inputs = network(), batch()
    whole = find_critical(model, inputs, radius=RADIUS, max_steps=10)
    parts = find_critical(model, inputs, radius=RADIUS, max_steps=10, batch_size=batch_size)
    assert torch.equal(whole.first_step, parts.first_step)
    torch.testing.assert_close(whole.points, parts.points)


def test_counts_fit_together():
    model, inputs = network(), batch()
    search = find_critical(model, inputs, radius=RADIUS, max_steps=10)
    curve = search.ratio_by_step()
    assert curve.shape == (11,)
    assert curve[0] == 0
    for k in range(11):
        found = ((search.first_step != -1) & (search.first_step <= k)).double().mean()
        torch.testing.assert_close(curve[k].double(), found, rtol=1e-6, atol=0)
    assert (
        search.ratio
        == curve[-1]
        == critical_sample_ratio(model, inputs, radius=RADIUS, max_steps=10)
    )
    # A forward and a backward pass to begin with and for each step until an example leaves, no
    # backward pass for the last step of all, and a last look at what was found.
    steps = torch.where(search.is_critical, search.first_step, 10)
    searched = 2 * (len(inputs) + int(steps.sum())) - int((steps == 10).sum())
    searched += int(search.is_critical.sum())
    shorter = find_critical(model, inputs, radius=RADIUS, max_steps=1)
    steps = torch.ones(len(inputs))
    before = 3 * len(inputs) + int(shorter.is_critical.sum())
    assert search.evaluations - searched == shorter.evaluations - before
    assert search.evaluations - searched < 200  # rounding, coupling and memory


def test_more_steps_only_add():
    model, inputs = network(), batch()
    short = find_critical(model, inputs, radius=RADIUS, max_steps=3)
    long = find_critical(model, inputs, radius=RADIUS, max_steps=30)
    within = (long.first_step != -1) & (long.first_step <= 3)
    assert torch.equal(short.is_critical, within)
    assert long.ratio > short.ratio


def test_nothing_is_critical_in_a_box_of_no_width():
    search = find_critical(network(), batch(), radius=0.0, max_steps=3)
    assert search.ratio == 0
    assert torch.equal(search.ratio_by_step(), torch.zeros(4))
    assert torch.equal(search.points, batch())


def test_seeds_decide_the_noise():
    model, inputs = network(), batch()

    def first_steps(**options):
        return find_critical(model, inputs, radius=RADIUS, max_steps=10, **options).first_step

    torch.manual_seed(1)
    default = first_steps()
    torch.manual_seed(2)
    assert torch.equal(default, first_steps())
    assert torch.equal(default, first_steps(generator=torch.Generator().manual_seed(0)))
    assert torch.equal(
        first_steps(generator=seeds.generator(3, "csr")),
        first_steps(generator=seeds.generator(3, "csr")),
    )
    assert not torch.equal(default, first_steps(generator=seeds.generator(4, "csr")))


def test_results_of_an_example_do_not_depend_on_the_others_leaving():
    """The noise of a step is drawn for all, so that who has left does not shift it."""
    model, inputs = network(), batch()
    alone = torch.cat([inputs[:1], inputs[:1] * 0 + 50])  # the second never flips
    one = find_critical(model, inputs[[0, 1]], radius=RADIUS, max_steps=15)
    two = find_critical(model, alone, radius=RADIUS, max_steps=15)
    assert one.first_step[0] == two.first_step[0]


def test_dropout_is_off_during_the_search_and_on_afterwards():
    model, inputs = network().train(), batch()
    searched = find_critical(model, inputs, radius=RADIUS, max_steps=10)
    assert model.training
    assert all(module.training for module in model.modules())
    evaluated = find_critical(model.eval(), inputs, radius=RADIUS, max_steps=10)
    assert not model.training
    assert torch.equal(searched.points, evaluated.points)


def test_the_predicted_class_counts_and_not_the_first():
    """A model that always answers the same has no critical sample."""
    model = nn.Linear(6, 4).double()
    model.weight.data.mul_(1e-9)
    model.bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0]).double()
    assert critical_sample_ratio(model, batch(), radius=RADIUS, max_steps=5) == 0


def test_in_inference_mode():
    model, expected = network(), find_critical(network(), batch(), radius=RADIUS, max_steps=5)
    with torch.inference_mode():
        search = find_critical(model, batch(), radius=RADIUS, max_steps=5)
    assert torch.equal(search.points, expected.points)
    assert torch.equal(search.ratio_by_step(), expected.ratio_by_step())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"radius": -0.1}, r"radius must be finite and not negative, got -0\.1"),
        ({"radius": float("nan")}, r"radius must be finite and not negative, got nan"),
        ({"radius": float("inf")}, r"radius must be finite and not negative, got inf"),
        ({"radius": torch.ones(5)}, r"radius must broadcast .* \(6,\), got shape \(5,\)"),
        ({"radius": torch.ones(40, 6)}, r"radius must broadcast .*, got shape \(40, 6\)"),
        ({"step_size": -1.0}, r"step_size must be finite and not negative, got -1"),
        ({"step_size": torch.ones(40, 1)}, r"step_size must broadcast .*, got shape \(40, 1\)"),
        ({"noise": -1.0}, r"noise must be finite and not negative, got -1"),
        ({"noise": float("nan")}, r"noise must be finite and not negative, got nan"),
        ({"bounds": (0.0, 1.0)}, r"bounds must contain the inputs, .* own units"),
        ({"bounds": (1.0, -1.0)}, r"bounds must contain the inputs"),
        ({"bounds": (float("nan"), 9.0)}, r"bounds must contain the inputs"),
        ({"bounds": (-9.0,)}, r"bounds must be the smallest and the largest input, got \(-9\.0,\)"),
        ({"bounds": (torch.ones(5) * -9, 9.0)}, r"bounds must broadcast .*, got shape \(5,\)"),
        ({"max_steps": 0}, r"max_steps must be at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0; None"),
        ({"method": "fgsm"}, r'method must be "lass" or "auto", got \'fgsm\''),
        ({"gradient_at": "end"}, r'gradient_at must be "moving" or "start", got \'end\''),
    ],
)
def test_errors_say_what_to_do(options, text):
    with pytest.raises(ValueError, match=text):
        find_critical(network(), batch(), **({"radius": RADIUS} | options))
    with pytest.raises(ValueError, match=text):
        critical_sample_ratio(network(), batch(), **({"radius": RADIUS} | options))
