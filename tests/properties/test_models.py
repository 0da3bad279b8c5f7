"""What is asked of a model, on softmax regression, where the answer has a closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import memtools
from tests.properties.tensors import UGLY, any_number, batches, finite, ugly

MODEL_DTYPES = (torch.float32, torch.float64)


@st.composite
def regressions(draw, elements=finite, weight_limit: float = 4.0):
    """A linear model, inputs and targets."""
    inputs = draw(batches(elements=elements, dtypes=MODEL_DTYPES, columns=(1, 5)))
    n, d = inputs.shape
    classes = draw(st.integers(2, 4))
    numbers = st.floats(-weight_limit, weight_limit, width=32)
    weights = draw(st.lists(numbers, min_size=classes * (d + 1), max_size=classes * (d + 1)))
    model = nn.Linear(d, classes, dtype=inputs.dtype)
    with torch.no_grad():
        table = torch.tensor(weights, dtype=inputs.dtype).view(classes, d + 1)
        model.weight.copy_(table[:, 1:])
        model.bias.copy_(table[:, 0])
    targets = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    return model, inputs, targets


def residuals(model, inputs, targets):
    """Probabilities less the label, in extended precision, from the logits of the dtype itself."""
    with torch.no_grad():
        logits = model(inputs.detach()).double().numpy().astype(np.longdouble)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), targets.numpy()] = 0
    p[np.arange(len(p)), targets.numpy()] = -p.sum(1)
    return p


@settings(max_examples=1000)
@given(regressions(), st.sampled_from([1, 2, math.inf]))
def test_gradient_norms_of_inputs_of_any_size(problem, p):
    model, inputs, targets = problem
    try:
        of_inputs, of_weights = memtools.gradient_norms(model, inputs, targets, p=p)
    except ValueError:
        assert not bool(model(inputs).isfinite().all())  # the logits overflow
        return
    r = residuals(model, inputs, targets)
    about = torch.finfo(inputs.dtype)
    x = inputs.detach().double().numpy().astype(np.longdouble)
    w = model.weight.detach().double().numpy().astype(np.longdouble)
    # p - 1 is rounded to the dtype, so that a residual is off by eps however small it is; then
    # each of C products, and their sum.
    slack = 16 * (w.shape[0] + w.shape[1]) * about.eps
    gradients = r @ w
    wanted = np.linalg.norm(gradients.astype(np.float64), ord=p, axis=1)
    reach = slack * np.abs(w).sum() + about.tiny * 64
    assert (np.abs(of_inputs.double().numpy() - wanted) <= reach).all()
    wanted = np.sqrt((r**2).sum(1)) * np.sqrt((x**2).sum(1) + 1)
    found = of_weights.double().numpy()
    reach = slack * np.sqrt((x**2).sum(1) + 1)
    # Squares overflow beyond the root of the largest number, which is documented and shows.
    fits = np.abs(x).max(1) < math.sqrt(about.max) / 64
    assert (np.abs(found - wanted) <= reach)[fits].all()
    assert not (np.isfinite(found) & (np.abs(found - wanted) > reach)).any()


@settings(max_examples=300)
@given(regressions(elements=any_number))
def test_inputs_that_are_no_numbers_are_refused(problem):
    model, inputs, targets = problem
    assume(not bool(inputs.isfinite().all()))
    logits_fail = not bool(model(inputs).isfinite().all())
    for function in (memtools.input_gradient_norms, memtools.parameter_gradient_norms):
        try:
            function(model, inputs, targets)
        except ValueError as error:
            if "NaN or infinite" not in str(error):
                raise
        else:
            assert not logits_fail


def searched(model, inputs, **options):
    """A search, unless the box is so wide that it is taken for one in other units."""
    try:
        return memtools.find_critical(model, inputs, **options)
    except ValueError as error:
        assume("units" not in str(error))
        raise


@settings(max_examples=200)
@given(regressions(), st.floats(1e-6, 10), st.sampled_from(["lass", "auto"]))
def test_a_flip_lies_in_the_box_and_is_one(problem, radius, method):
    model, inputs, _ = problem
    assume(bool((inputs.abs() < 1e4).all()))
    found = searched(model, inputs, radius=radius, method=method, max_steps=5)
    low, high = inputs.detach() - radius, inputs.detach() + radius
    assert bool(((found.points >= low) & (found.points <= high))[found.is_critical].all())
    with torch.no_grad():
        there, here = model(found.points).argmax(1), model(inputs.detach()).argmax(1)
    assert bool((there != here)[found.is_critical].all())


@settings(max_examples=150)
@given(regressions(), st.floats(0.01, 2))
def test_auto_finds_every_clear_flip_of_two_classes(problem, radius):
    model, inputs, _ = problem
    assume(len(model.weight) == 2 and bool((inputs.abs() < 10).all()))
    difference = (model.weight[0] - model.weight[1]).detach().double()
    offset = float((model.bias[0] - model.bias[1]).detach())
    margin = (inputs.detach().double() @ difference + offset).abs()
    reach = radius * difference.abs().sum()
    found = searched(model, inputs, radius=radius, method="auto").is_critical
    assert bool(found[reach > 1.01 * margin + 1e-4].all())
    assert not bool(found[reach < 0.99 * margin - 1e-4].any())


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_boxes_that_are_none_are_refused(radius):
    with pytest.raises(ValueError, match="radius"):
        memtools.find_critical(nn.Linear(2, 2), torch.zeros(3, 2), radius=radius)


CALLS = {
    "input_gradient_norms": lambda m, x: memtools.input_gradient_norms(m, x, torch.zeros(4).long()),
    "parameter_gradient_norms": lambda m, x: memtools.parameter_gradient_norms(
        m, x, torch.zeros(4).long()
    ),
    "gradient_norms": lambda m, x: memtools.gradient_norms(m, x, torch.zeros(4).long()).parameters,
    "class_sensitivity": lambda m, x: memtools.class_sensitivity(m, x, torch.zeros(4).long()),
    "critical_sample_ratio": lambda m, x: memtools.critical_sample_ratio(m, x, radius=0.1),
    "linear_reach": lambda m, x: memtools.linear_reach(m, x, radius=0.1),
    "critical_radius": lambda m, x: memtools.critical_radius(m, x, [0.1, 0.2]),
    "curvature": lambda m, x: memtools.scores.curvature(m, x, torch.zeros(4).long()),
}


# Another number of columns is for the model to refuse.
@pytest.mark.parametrize("kind", [kind for kind in UGLY if kind != "no columns"])
@pytest.mark.parametrize("name", CALLS)
def test_ugly_inputs_are_refused_in_words(name, kind):
    model = nn.Linear(2, 2)
    with pytest.raises((ValueError, TypeError), match=r"inputs|logits|model"):
        CALLS[name](model, ugly()[kind])
    assert model.weight.grad is None


@pytest.mark.parametrize("kind", UGLY)
@pytest.mark.parametrize("name", ["loss", "confidence", "correctness", "el2n", "margin"])
def test_ugly_logits_are_refused_in_words(name, kind):
    with pytest.raises((ValueError, TypeError), match="logits"):
        getattr(memtools.scores, name)(ugly()[kind], torch.zeros(4).long())


@pytest.mark.parametrize("kind", [k for k in UGLY if k not in ("integers", "boolean", "bytes")])
@pytest.mark.parametrize("name", ["input_gradient_norms", "parameter_gradient_norms"])
def test_ugly_targets_are_refused_in_words(name, kind):
    with pytest.raises((ValueError, TypeError), match=r"targets|logits"):
        getattr(memtools, name)(nn.Linear(3, 3), torch.ones(4, 3), ugly()[kind])
