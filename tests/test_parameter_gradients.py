import pytest
import torch
from torch import nn

from memtools import parameter_gradient_norms
from memtools.gradients import remainder

# PyTorch's own, about operators that it vectorises by a loop.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture
def mlp(zoo):
    return zoo.build("mlp", torch.float64)


def test_agrees_with_a_loop_over_examples(case, tolerance, oracles):
    norms = parameter_gradient_norms(*case)
    assert norms.dtype == case.inputs.dtype
    expected = oracles.parameter_gradient_norms(*case)
    torch.testing.assert_close(norms.double(), expected, rtol=tolerance, atol=0)


def test_chunk_size_changes_nothing(zoo, oracles, model_name):
    case = zoo.build(model_name, torch.float64)
    whole = parameter_gradient_norms(*case)
    for chunk_size in (1, 2, 4, 100):
        norms = parameter_gradient_norms(*case, chunk_size=chunk_size)
        torch.testing.assert_close(norms, whole, rtol=oracles.FLOAT64, atol=0)


def test_chunks_bound_the_gradients_held_of_weights_without_closed_form(zoo, oracles, monkeypatch):
    monkeypatch.setattr(remainder, "CHUNK_BYTES", 1)
    case = zoo.build("weight_norm", torch.float64)
    held = []
    vmap = remainder.vmap
    monkeypatch.setattr(
        remainder,
        "vmap",
        lambda f, in_dims: lambda w, x, y: held.append(len(x)) or vmap(f, in_dims=in_dims)(w, x, y),
    )
    norms = parameter_gradient_norms(*case)
    torch.testing.assert_close(
        norms, oracles.parameter_gradient_norms(*case), rtol=oracles.FLOAT64, atol=0
    )
    assert held == [1] * len(case.inputs)


def test_surroundings_change_nothing(called, mlp, oracles):
    expected = oracles.parameter_gradient_norms(*mlp)
    norms = called(parameter_gradient_norms, chunk_size=2)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_model_made_in_inference_mode(oracles):
    with torch.inference_mode():
        model = nn.Linear(4, 3).double()
    copy = nn.Linear(4, 3).double()
    copy.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()})
    inputs, targets = torch.eye(4).double(), torch.tensor([0, 1, 2, 0])
    norms = parameter_gradient_norms(model, inputs, targets)
    expected = oracles.parameter_gradient_norms(copy, inputs, targets)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_linear_model_in_closed_form(oracles):
    """The gradient of row k is (p_k - [k = y]) times the input and the one of the bias."""
    model = nn.Linear(4, 3).double()
    inputs, targets = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    error = model(inputs).softmax(1) - torch.eye(3)[targets]
    expected = error.norm(dim=1) * (inputs.square().sum(1) + 1).sqrt()
    norms = parameter_gradient_norms(model, inputs, targets)
    torch.testing.assert_close(norms, expected.detach(), rtol=oracles.FLOAT64, atol=0)


def test_soft_targets(mlp, oracles):
    soft = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft /= soft.sum(1, keepdim=True)
    expected = oracles.parameter_gradient_norms(mlp.model, mlp.inputs, soft)
    norms = parameter_gradient_norms(mlp.model, mlp.inputs, soft, chunk_size=3)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_custom_loss(mlp, oracles):
    def loss(logits, y):
        return (logits - y).square().sum(1)

    targets = torch.arange(15, dtype=torch.float64).reshape(5, 3)
    expected = oracles.parameter_gradient_norms(mlp.model, mlp.inputs, targets, loss=loss)
    norms = parameter_gradient_norms(mlp.model, mlp.inputs, targets, loss_fn=loss)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_autocast_is_respected(zoo, oracles):
    case = zoo.build("mlp", torch.float32)
    exact = oracles.parameter_gradient_norms(*case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms = parameter_gradient_norms(*case)
    assert norms.dtype == torch.float32
    # As in float32, with the larger unit of the dtype.
    rtol = oracles.float32_tolerance(case.model) / oracles.EPS32 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(norms.double(), exact, rtol=rtol, atol=0)
    assert not torch.allclose(norms.double(), exact, rtol=oracles.float32_tolerance(case.model))


def test_frozen_weights_do_not_count(mlp):
    everything = parameter_gradient_norms(*mlp)
    parts = []
    for part in (mlp.model[0], mlp.model[2]):
        mlp.model.requires_grad_(False)
        part.requires_grad_(True)
        parts.append(parameter_gradient_norms(*mlp))
    torch.testing.assert_close(torch.stack(parts).square().sum(0).sqrt(), everything)
    assert (parts[0] < everything).all()
    assert (parts[1] < everything).all()


def test_weight_that_is_not_used_counts_zero(mlp):
    before = parameter_gradient_norms(*mlp)
    mlp.model.register_parameter("idle", nn.Parameter(torch.ones(3).double()))
    torch.testing.assert_close(parameter_gradient_norms(*mlp), before)


def test_result_holds_no_graph(mlp):
    """Also where the model has a tensor that requires a gradient and is no parameter."""
    free = torch.ones(3, dtype=torch.float64, requires_grad=True)
    mlp.model.register_forward_hook(lambda module, args, output: output * free)
    assert not parameter_gradient_norms(*mlp).requires_grad
