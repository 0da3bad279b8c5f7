"""Gradient norms of many models against the loop over single examples."""

import pytest
import torch

from memtools import gradient_norms, parameter_gradient_norms

# PyTorch's own, about operators that it vectorises by a loop, nested tensors and tracing; and ours
# about the embedding that is found.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SOME = (
    "raw parameters everywhere",
    "token expanded, used whole and in part",
    "weight that meets itself",
    "tied and transposed",
    "all kinds of products",
    "attention, sequence first inside",
    "frames in the batch",
    "frames in the batch, one after the other",
    "linear on (T * n, d)",
    "linear on (n, d, T) transposed and on a grid",
    "as many positions as examples",
    "batch in reverse",
    "batch sorted inside",
    "mixture of experts over tokens",
    "embedding and head tied",
    "embedding, sequence first",
    "small GPT",
    "torchvision ViT",
    "transposed convolutions",
)
"""Those that also come in other batches."""


def loss_of(case, oracles):
    return case.loss or oracles.cross_entropy


def expected_norms(case, oracles):
    return oracles.parameter_gradient_norms(
        case.model, case.inputs, case.targets, loss=loss_of(case, oracles)
    )


def test_agrees_with_a_loop_over_examples(gradient_case, oracles):
    case = gradient_case(torch.float64)
    norms = parameter_gradient_norms(case.model, case.inputs, case.targets, loss_fn=case.loss)
    expected = expected_norms(case, oracles)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_both_norms_from_one_pass(gradient_case, oracles):
    """The second call knows where the examples are."""
    case = gradient_case(torch.float64)
    loss = loss_of(case, oracles)
    expected = expected_norms(case, oracles)
    if case.inputs.is_floating_point():
        of_inputs = oracles.input_gradient_norms(case.model, case.inputs, case.targets, loss=loss)
    else:
        of_inputs = None
    for _ in range(2):
        try:
            norms = gradient_norms(case.model, case.inputs, case.targets, loss_fn=case.loss)
        except ValueError as error:
            if of_inputs is not None or "embedding must name" not in str(error):
                raise
            return  # tokens that are looked up in another way have no input gradient
        torch.testing.assert_close(norms.parameters, expected, rtol=oracles.FLOAT64, atol=0)
        if of_inputs is not None:
            torch.testing.assert_close(norms.inputs, of_inputs, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(gradient_case, oracles, dtype):
    case = gradient_case(dtype)
    exact = case._replace(model=oracles.in_float64(case.model, case.inputs)[0])
    inputs = oracles.in_float64(case.model, case.inputs)[1]
    rtol = oracles.rounding_tolerance(
        exact.model, inputs, case.targets, loss_of(case, oracles), dtype
    )
    if dtype == torch.bfloat16 and rtol > 0.5:
        pytest.skip("the bound says nothing")
    try:
        oracles.logits_of(case.model, case.inputs[:1])
    except RuntimeError as error:
        pytest.skip(f"no operator for {dtype}: {error}")
    norms = parameter_gradient_norms(case.model, case.inputs, case.targets, loss_fn=case.loss)
    assert norms.dtype == torch.float32
    expected = expected_norms(exact, oracles)
    torch.testing.assert_close(norms.double(), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_batches_of_any_size(gradient_zoo, oracles, name, n):
    if name == "as many positions as examples" or n == gradient_zoo.N:
        case = gradient_zoo.build(name, torch.float64)
        case = case._replace(inputs=case.inputs[:n], targets=case.targets[:n])
    else:
        case = gradient_zoo.build(name, torch.float64, n)
    norms = parameter_gradient_norms(case.model, case.inputs, case.targets, loss_fn=case.loss)
    torch.testing.assert_close(norms, expected_norms(case, oracles), rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("kind", ["duplicates", "zeros", "offset"])
def test_examples_that_are_hard_to_tell_apart(gradient_zoo, oracles, name, kind):
    case = gradient_zoo.build(name, torch.float64)
    inputs = case.inputs
    if kind == "duplicates":
        inputs = inputs[:1].expand(inputs.shape).clone()
    elif kind == "zeros":
        inputs = torch.zeros_like(inputs)
    elif inputs.is_floating_point():
        inputs = 1000 + inputs
    case = case._replace(inputs=inputs)
    norms = parameter_gradient_norms(case.model, case.inputs, case.targets, loss_fn=case.loss)
    # A sum of 1000 and 1 has lost three digits.
    rtol = oracles.FLOAT64 * (1000 if kind == "offset" else 1)
    torch.testing.assert_close(norms, expected_norms(case, oracles), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_chunk_size_changes_nothing(gradient_zoo, oracles, name, chunk_size):
    case = gradient_zoo.build(name, torch.float64)
    norms = parameter_gradient_norms(
        case.model, case.inputs, case.targets, loss_fn=case.loss, chunk_size=chunk_size
    )
    torch.testing.assert_close(norms, expected_norms(case, oracles), rtol=oracles.FLOAT64, atol=0)
