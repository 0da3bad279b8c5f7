import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from memtools import class_sensitivity
from memtools.metrics import ClassSensitivity


@pytest.fixture
def everything(cases):
    return cases.network(), *cases.data()


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_give_the_matrix_of_the_whole_set(size, everything, oracles):
    model, inputs, targets = everything
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    metric = ClassSensitivity(3)
    for batch in order.split(size):
        metric.update(model, inputs[batch], targets[batch])
    expected = oracles.class_sensitivity(*everything, classes=3)
    torch.testing.assert_close(metric.compute(), expected, rtol=oracles.FLOAT64, atol=0)
    torch.testing.assert_close(
        metric.compute(), class_sensitivity(*everything), rtol=oracles.FLOAT64, atol=0
    )


def test_single_precision_agrees_up_to_its_rounding(everything, oracles):
    model, inputs, targets = everything
    metric = ClassSensitivity(3)
    for batch in torch.arange(len(inputs)).split(5):
        metric.update(model.float(), inputs[batch].float(), targets[batch])
    expected = oracles.class_sensitivity(*everything, classes=3)
    rtol = oracles.float32_tolerance(model)
    torch.testing.assert_close(metric.compute(), expected, rtol=rtol, atol=0)


def test_column_of_an_absent_class_is_nan_until_it_comes(everything):
    model, inputs, targets = everything
    metric, first = ClassSensitivity(3), targets == 0
    metric.update(model, inputs[first], targets[first])
    assert metric.compute()[:, 0].isfinite().all()
    assert metric.compute()[:, 1:].isnan().all()
    metric.update(model, inputs[~first], targets[~first])
    assert metric.compute().isfinite().all()


def test_an_example_that_is_seen_twice_counts_twice(everything):
    model, inputs, targets = everything
    metric, twice = ClassSensitivity(3), torch.tensor([0, 3, 3])
    metric.update(model, inputs[twice[:2]], targets[twice[:2]])
    metric.update(model, inputs[twice[2:]], targets[twice[2:]])
    expected = class_sensitivity(model, inputs[twice], targets[twice])
    torch.testing.assert_close(metric.compute(), expected, equal_nan=True)
