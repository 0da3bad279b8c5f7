"""Bad input gives an error that names the argument, what came and the remedy."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import memtools

GRADIENTS = {
    "input_gradient_norms": memtools.input_gradient_norms,
    "parameter_gradient_norms": memtools.parameter_gradient_norms,
}
LABELLED = GRADIENTS | {"class_sensitivity": memtools.class_sensitivity}
ALL = LABELLED | {
    "find_critical": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.1, max_steps=2
    ),
    "find_critical, auto": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.1, method="auto"
    ),
    "critical_sample_ratio": lambda model, inputs, targets: memtools.critical_sample_ratio(
        model, inputs, radius=0.1, max_steps=2
    ),
    "critical_radius": lambda model, inputs, targets: memtools.critical_radius(
        model, inputs, [0.1, 0.2]
    ),
    "linear_reach": lambda model, inputs, targets: memtools.linear_reach(model, inputs, radius=0.1),
}
INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(params=list(ALL))
def metric(request):
    return ALL[request.param]


@pytest.fixture(params=list(LABELLED))
def labelled(request):
    return LABELLED[request.param]


@pytest.fixture(params=list(GRADIENTS))
def gradient(request):
    return GRADIENTS[request.param]


class Model(nn.Module):
    """A linear model with something done to its inputs or its logits."""

    def __init__(self, before=None, after=None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.before, self.after = before, after

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = self.layer(x)
        return x if self.after is None else self.after(x)


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        (INPUTS[:0], ValueError, r"inputs is an empty batch, shape \(0, 4\)"),
        (
            INPUTS.long(),
            ValueError,
            r"inputs must be .*, got torch\.int64.*inputs\.float\(\) / 255",
        ),
        (INPUTS.to(torch.uint8), ValueError, r"inputs must be .*, got torch\.uint8.* embeddings"),
        (INPUTS.bool(), ValueError, r"inputs must be .*floating point, got torch\.bool"),
        (
            INPUTS.to(torch.complex64),
            ValueError,
            r"inputs must be real floating point, got torch\.complex64",
        ),
        (INPUTS[0, 0], ValueError, r"inputs must have shape .*, got a scalar; add a batch dim"),
        (INPUTS.numpy(), TypeError, r"inputs must be a tensor, got ndarray"),
        (INPUTS.tolist(), TypeError, r"inputs must be a tensor, got list"),
        (INPUTS * torch.nan, ValueError, r"logits of 5 of 5 .* NaN or infinite .*check the inputs"),
        (
            torch.cat([INPUTS[:3], INPUTS[3:] / 0]),
            ValueError,
            r"logits of 2 of 5 examples .*first: example 3",
        ),
    ],
)
def test_inputs(metric, inputs, error, text):
    with pytest.raises(error, match=text):
        metric(Model(), inputs, TARGETS[: len(inputs)] if np.ndim(inputs) else TARGETS)


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (TARGETS[:4], ValueError, r"targets must have one entry .* 5 inputs, got shape \(4,\)"),
        (TARGETS[0], ValueError, r"targets must have one entry .* 5 inputs, got shape \(\)"),
        (TARGETS + 1, ValueError, r"targets must lie in 0\.\.2 for 3 classes, .* from 1 to 3; num"),
        (TARGETS - 1, ValueError, r"targets must lie in 0\.\.2 for 3 classes, .* from -1 to 1"),
        (
            torch.tensor([0, 1, -100, 1, 0]),
            ValueError,
            r"targets must lie in 0\.\.2 .* from -100 to 1; .*leave out examples to be ignored",
        ),
        (TARGETS.float(), ValueError, r"targets must be class numbers .* torch\.float32; .*long"),
        (TARGETS.bool(), ValueError, r"targets must be class numbers .* torch\.bool"),
        (TARGETS[:, None], ValueError, r"targets must be class numbers .* got shape \(5, 1\)"),
        (TARGETS.tolist(), TypeError, r"targets must be a tensor, got list; .*as_tensor"),
        (TARGETS.numpy(), TypeError, r"targets must be a tensor, got ndarray"),
    ],
)
def test_targets(labelled, targets, error, text):
    with pytest.raises(error, match=text):
        labelled(Model(), INPUTS, targets)


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (F.one_hot(TARGETS, 3), r"targets of the shape of the logits must be .*int64; .*float\(\)"),
        (torch.full((5, 3), torch.nan), r"targets .* must be probabilities, got NaN"),
        (torch.full((5, 3), -1.0), r"targets .* must be probabilities, .* apply softmax"),
        (torch.full((5, 2), 0.5), r"targets must be class numbers .* got shape \(5, 2\)"),
    ],
)
def test_soft_targets(gradient, targets, text):
    with pytest.raises(ValueError, match=text):
        gradient(Model(), INPUTS, targets)


@pytest.mark.parametrize(
    ("loss_fn", "error", "text"),
    [
        (
            F.cross_entropy,
            ValueError,
            r"loss_fn must return .* single examples.*reduction=\"none\"",
        ),
        (
            nn.CrossEntropyLoss(reduction="sum"),
            ValueError,
            r"loss_fn must return the losses of single examples, shape \(n,\), got one number",
        ),
        (
            lambda logits, y: logits,
            ValueError,
            r"loss_fn must return losses of shape \((5|1),\), got \((5|1), 3\); sum or average",
        ),
        (
            lambda logits, y: F.cross_entropy(logits, y).item(),
            TypeError,
            r"loss_fn must return a tensor of shape \(5,\), got float; do not call \.item\(\)",
        ),
        (
            lambda logits, y: logits[:, 0] / 0,
            ValueError,
            r"losses of 5 of 5 examples are NaN or infinite .*; look for log\(0\)",
        ),
    ],
)
@pytest.mark.parametrize("n", [5, 1])
def test_loss_functions(gradient, loss_fn, error, text, n):
    text = text.replace("5", str(n))
    with pytest.raises(error, match=text):
        gradient(Model(), INPUTS[:n], TARGETS[:n], loss_fn=loss_fn)


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (lambda z: z[:, :1], r"logits must have shape \(5, C\) .*, got \(5, 1\); .*second column"),
        (lambda z: z[:, 0], r"logits must have shape \(5, C\) with C >= 2 classes, got \(5,\)"),
        (lambda z: z[:, :, None], r"logits must have shape \(5, C\) .*, got \(5, 3, 1\)"),
        (lambda z: z.repeat(2, 1), r"logits must have shape \(5, C\) .*, got \(10, 3\)"),
        (lambda z: z.log() * torch.nan, r"logits of 5 of 5 examples are NaN"),
    ],
)
def test_logits(metric, after, text):
    with pytest.raises(ValueError, match=text):
        metric(Model(after=after), INPUTS, TARGETS)


@pytest.mark.parametrize(
    ("after", "got"),
    [
        (lambda z: (z, z), "tuple"),
        (lambda z: {"scores": z}, "dict"),
        (lambda z: SimpleNamespace(logits=None), "NoneType"),
    ],
)
def test_outputs_that_are_no_logits(metric, after, got):
    with pytest.raises(ValueError, match=rf"model must return a tensor .* got {got}; wrap the"):
        metric(Model(after=after), INPUTS, TARGETS)


def test_a_loss_of_its_own_needs_a_row_of_logits_for_each_example(gradient):
    with pytest.raises(ValueError, match=r"logits must have one row for each of the 5 examples"):
        gradient(
            Model(after=lambda z: z.repeat(2, 1)),
            INPUTS,
            TARGETS,
            loss_fn=lambda logits, y: logits.sum(1)[:5],
        )


def test_a_model_that_squeezes_a_single_example_away():
    with pytest.raises(ValueError, match=r"got \(3,\); .*keep the batch dimension"):
        memtools.parameter_gradient_norms(Model(after=torch.squeeze), INPUTS[:1], TARGETS[:1])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_in_train_mode(labelled, norm):
    model = nn.Sequential(nn.Linear(4, 3), norm(3))
    text = rf"couples the examples .* {norm.__name__} '1' .* call model\.eval\(\) first"
    with pytest.raises(ValueError, match=text):
        labelled(model, INPUTS, TARGETS)
    if norm is nn.BatchNorm1d:
        assert labelled(model.eval(), INPUTS, TARGETS).isfinite().all()


def test_batch_norm_without_running_statistics(metric):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match=r"couples the examples .*track_running_stats=True.*Group"):
        metric(model, INPUTS, TARGETS)


@pytest.mark.parametrize(
    "coupling",
    [
        lambda x: x - x.mean(0),
        lambda x: x / x.abs().max(),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: x + 1e-3 * x.flip(0),
        lambda x: x + x[:1],
        lambda x: x + x[1:2],
        lambda x: nn.functional.scaled_dot_product_attention(x, x, x),
    ],
    ids=["mean", "largest", "batch_norm", "faint", "first", "second", "attention"],
)
def test_examples_that_influence_each_other(metric, coupling):
    """Where no module gives it away."""
    with pytest.raises(ValueError, match=r"model couples the examples .*batch_first=True"):
        metric(Model(before=coupling), INPUTS, TARGETS)


def test_attention_over_the_batch(metric):
    """The default of PyTorch's layers is to expect the batch in the second dimension."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=False)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match=r"model couples the examples .*batch_first=True"):
        metric(model, INPUTS[:, None].repeat(1, 3, 1), TARGETS)


@pytest.mark.parametrize(
    "dropout", [nn.Dropout(0.5), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout()]
)
def test_dropout_in_train_mode(labelled, dropout):
    model = nn.Sequential(nn.Linear(4, 3), dropout).train()
    with pytest.raises(ValueError, match=r"drew random numbers .*active: 1.*model\.eval\(\)"):
        labelled(model, INPUTS, TARGETS)
    assert labelled(model.eval(), INPUTS, TARGETS).isfinite().all()


def test_dropout_that_drops_nothing_is_fine(labelled):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
    assert labelled(model, INPUTS, TARGETS).isfinite().all()


@pytest.mark.parametrize(
    "noise",
    [
        F.dropout,
        lambda z: z + torch.randn_like(z),
        lambda z: z * random.random(),
        lambda z: z * float(np.random.rand()),  # noqa: NPY002
    ],
    ids=["functional dropout", "torch", "python", "numpy"],
)
def test_randomness_that_no_module_gives_away(metric, noise):
    with pytest.raises(ValueError, match=r"drew random numbers in its forward pass, .*eval\(\)"):
        metric(Model(after=noise), INPUTS, TARGETS)


@pytest.mark.parametrize(
    "detached",
    [
        lambda z: z.detach(),
        torch.no_grad()(lambda z: z * 1),
        lambda z: F.one_hot(z.argmax(1), 3).float(),
    ],
    ids=["detach", "no_grad", "argmax"],
)
def test_detached_logits(metric, detached):
    text = r"model gives logits that do not depend on its (inputs|weights) .* look for \.detach"
    with pytest.raises(ValueError, match=text):
        metric(Model(after=detached), INPUTS, TARGETS)


def test_logits_that_depend_on_the_weights_alone(metric):
    model = Model(before=torch.detach)
    if metric is memtools.parameter_gradient_norms:
        expected = memtools.parameter_gradient_norms(Model(), INPUTS, TARGETS)
        assert metric(model, INPUTS, TARGETS).shape == expected.shape
        return
    with pytest.raises(ValueError, match=r"do not depend on its inputs"):
        metric(model, INPUTS, TARGETS)


def test_no_weight_to_differentiate():
    model = Model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"model has no weight with requires_grad=True"):
        memtools.parameter_gradient_norms(model, INPUTS, TARGETS)
    assert memtools.input_gradient_norms(model, INPUTS, TARGETS).shape == (5,)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_size(gradient, chunk_size):
    with pytest.raises(ValueError, match=rf"chunk_size must be at least 1, got {chunk_size}; None"):
        gradient(Model(), INPUTS, TARGETS, chunk_size=chunk_size)


@pytest.mark.parametrize("p", [0, 3, -1])
def test_norms_that_there_are_not(p):
    with pytest.raises(ValueError, match=rf"p must be 1, 2 or math\.inf, got {p}"):
        memtools.input_gradient_norms(Model(), INPUTS, TARGETS, p=p)


def test_a_loss_that_hides_nan_does_not_hide_it_here(gradient):
    with pytest.raises(ValueError, match=r"logits of 5 of 5 examples are NaN"):
        gradient(
            Model(after=lambda z: z * torch.nan),
            INPUTS,
            TARGETS,
            loss_fn=lambda logits, y: logits.nan_to_num().sum(1),
        )
