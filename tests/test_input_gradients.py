import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools import input_gradient_norms


@pytest.fixture
def mlp(zoo):
    return zoo.build("mlp", torch.float64)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_agrees_with_a_loop_over_examples(case, tolerance, oracles, p):
    expected = oracles.input_gradient_norms(*case, p=p)
    norms = input_gradient_norms(*case, p=p)
    assert norms.dtype == case.inputs.dtype
    torch.testing.assert_close(norms.double(), expected, rtol=tolerance, atol=0)


def test_chunk_size_changes_nothing(zoo, oracles, model_name):
    case = zoo.build(model_name, torch.float64)
    whole = input_gradient_norms(*case)
    for chunk_size in (1, 2, 4, 5, 100):
        norms = input_gradient_norms(*case, chunk_size=chunk_size)
        torch.testing.assert_close(norms, whole, rtol=oracles.FLOAT64, atol=0)


def test_default_norm_is_the_sum_of_absolute_values(mlp):
    assert torch.equal(input_gradient_norms(*mlp), input_gradient_norms(*mlp, p=1))


def test_surroundings_change_nothing(called, mlp, oracles):
    expected = oracles.input_gradient_norms(*mlp)
    norms = called(input_gradient_norms, chunk_size=2)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_soft_targets(mlp, oracles):
    soft = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft /= soft.sum(1, keepdim=True)
    expected = oracles.input_gradient_norms(mlp.model, mlp.inputs, soft)
    norms = input_gradient_norms(mlp.model, mlp.inputs, soft, chunk_size=3)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_numbers_of_any_integer_dtype(mlp, dtype):
    norms = input_gradient_norms(mlp.model, mlp.inputs, mlp.targets.to(dtype))
    assert torch.equal(norms, input_gradient_norms(*mlp))


def test_custom_loss(mlp, oracles):
    def loss(logits, y):
        return (logits - y).square().sum(1)

    targets = torch.arange(15, dtype=torch.float64).reshape(5, 3)
    expected = oracles.input_gradient_norms(mlp.model, mlp.inputs, targets, loss=loss)
    norms = input_gradient_norms(mlp.model, mlp.inputs, targets, loss_fn=loss)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_loss_module_without_reduction(mlp):
    loss = nn.CrossEntropyLoss(reduction="none")
    assert torch.equal(input_gradient_norms(*mlp, loss_fn=loss), input_gradient_norms(*mlp))


def test_regression_with_one_output_per_example(oracles):
    """Logits of shape (n,) are fine with a loss that takes them."""
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    inputs = torch.eye(4, dtype=torch.float64)
    targets = torch.arange(4, dtype=torch.float64)

    def loss(outputs, y):
        return (outputs - y).square()

    expected = oracles.input_gradient_norms(model, inputs, targets, loss=loss)
    norms = input_gradient_norms(model, inputs, targets, loss_fn=loss)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_norms(zoo, oracles, dtype):
    case = zoo.build("mlp", torch.float32)
    expected = oracles.input_gradient_norms(*case)
    norms = input_gradient_norms(case.model.to(dtype), case.inputs.to(dtype), case.targets)
    assert norms.dtype == torch.float32
    # As in float32, with the larger unit of the dtype.
    rtol = oracles.float32_tolerance(case.model) / oracles.EPS32 * torch.finfo(dtype).eps
    torch.testing.assert_close(norms.double(), expected, rtol=rtol, atol=0)


def test_autocast_is_respected(zoo, oracles):
    case = zoo.build("mlp", torch.float32)
    exact = oracles.input_gradient_norms(*case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms = input_gradient_norms(*case)
    assert norms.dtype == torch.float32
    rtol = oracles.float32_tolerance(case.model) / oracles.EPS32 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(norms.double(), exact, rtol=rtol, atol=0)
    assert not torch.allclose(norms.double(), exact, rtol=oracles.float32_tolerance(case.model))


def test_a_single_example(mlp):
    norms = input_gradient_norms(mlp.model, mlp.inputs[:1], mlp.targets[:1])
    assert norms.shape == (1,)
    # Another shape of matrix may be summed in another order.
    torch.testing.assert_close(norms, input_gradient_norms(*mlp)[:1])


def test_memory_layout_of_the_inputs_does_not_matter(zoo, oracles):
    model, inputs, targets = zoo.build("conv and GroupNorm", torch.float64)
    expected = oracles.input_gradient_norms(model, inputs, targets)
    for laid_out in (inputs.to(memory_format=torch.channels_last), inputs.mT.contiguous().mT):
        norms = input_gradient_norms(model, laid_out, targets)
        torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_result_holds_no_graph(mlp):
    assert not input_gradient_norms(*mlp).requires_grad


def test_cross_entropy_is_the_default(mlp):
    norms = input_gradient_norms(
        *mlp, loss_fn=lambda logits, y: F.cross_entropy(logits, y, reduction="none")
    )
    assert torch.equal(norms, input_gradient_norms(*mlp))
