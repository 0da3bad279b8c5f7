import pytest
import torch

from memtools import class_sensitivity, input_gradient_norms


@pytest.fixture
def mlp(zoo):
    return zoo.build("mlp", torch.float64)


def test_agrees_with_a_loop_over_examples(case, tolerance, oracles):
    matrix = class_sensitivity(*case)
    assert matrix.dtype == case.inputs.dtype
    expected = oracles.class_sensitivity(*case, classes=3)
    torch.testing.assert_close(matrix.double(), expected, rtol=tolerance, atol=0)


def test_surroundings_change_nothing(called, mlp, oracles):
    expected = oracles.class_sensitivity(*mlp, classes=3)
    matrix = called(class_sensitivity)
    torch.testing.assert_close(matrix, expected, rtol=oracles.FLOAT64, atol=0)


def test_autocast_rounds_the_model_but_not_the_mean(zoo, oracles):
    model, inputs, _ = zoo.build("mlp", torch.float32)
    targets = torch.zeros(len(inputs)).long()

    def norms(i):
        return input_gradient_norms(
            model, inputs, targets, loss_fn=lambda logits, _: -logits.log_softmax(1)[:, i]
        )

    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = class_sensitivity(model, inputs, targets)
        expected = torch.stack([norms(i) for i in range(3)]).mean(1)
    assert matrix.dtype == torch.float32
    rtol = oracles.float32_tolerance(model)
    torch.testing.assert_close(matrix[:, 0], expected, rtol=rtol, atol=0)


def test_diagonal_belongs_to_the_own_loss_term(mlp):
    """Row i is the loss term of class i, column j the examples of class j."""
    matrix = class_sensitivity(*mlp)
    own = input_gradient_norms(*mlp)
    for j in range(3):
        torch.testing.assert_close(matrix[j, j], own[mlp.targets == j].mean())


def test_column_of_an_absent_class_is_nan(mlp):
    targets = torch.tensor([0, 2, 2, 2, 0])
    matrix = class_sensitivity(mlp.model, mlp.inputs, targets)
    assert matrix[:, 1].isnan().all()
    assert matrix[:, [0, 2]].isfinite().all()


def test_num_classes_may_be_given(mlp):
    assert torch.equal(class_sensitivity(*mlp, num_classes=3), class_sensitivity(*mlp))
    with pytest.raises(ValueError, match=r"num_classes must be the number of logits, 3, got 4"):
        class_sensitivity(*mlp, num_classes=4)


def test_result_holds_no_graph(mlp):
    assert not class_sensitivity(*mlp).requires_grad
