"""The oracle itself: against PyTorch's optimisers, and against training anew."""

import pytest
import torch


def assert_same_weights(run, trained):
    for (weights, _), real in zip(run.steps, trained.weights, strict=True):
        assert weights.keys() == real.keys()
        for name, expected in real.items():
            torch.testing.assert_close(weights[name].detach(), expected, rtol=1e-11, atol=1e-13)


def assert_retraining(case, cases, unroll, unrolled, between=None):
    trained = cases.train(case, losses=True, between=between)
    run = unroll(case, trained)
    assert_same_weights(run, trained)
    times = range(len(case.batches) + 1)
    gradients = torch.stack([run.gradient(t) for t in times])

    def retrain(x):
        return cases.train(case, x=x, losses=True, between=between).losses

    # One used early, one used late, one never used.
    for example in (case.batches[0][0], case.batches[-1][0], len(case.x) - 1):
        element = (int(example), *(size // 2 for size in case.x.shape[1:]))
        expected = unrolled.difference(retrain, case.x, element)
        found = gradients[(slice(None), *element)]
        assert (found - expected).abs().max() <= 1e-5 * gradients.abs().max()


def test_every_optimizer(optimizer_name, cases, unroll, unrolled):
    assert_retraining(cases.build("mlp", optimizer_name), cases, unroll, unrolled)


@pytest.mark.parametrize("optimizer", ["momentum", "adam, all"])
def test_every_model(network_name, optimizer, cases, unroll, unrolled):
    assert_retraining(cases.build(network_name, optimizer), cases, unroll, unrolled)


def test_statistics_that_stay_from_some_update_on(cases, unroll, unrolled):
    case, between = cases.build("batch_norm"), cases.statistics_stay_from(4)
    assert_retraining(case, cases, unroll, unrolled, between)


@pytest.mark.parametrize("optimizer", ["all of SGD", "adam, all"])
def test_the_weight_of_an_example(optimizer, cases, unroll):
    # Updates of all examples, whose weights are then known to the loss by their places.
    batches = [torch.arange(cases.N)] * 4
    case = cases.build("batch_norm", optimizer, batches=batches)
    signed = unroll(case, cases.train(case)).signed(4)

    def loss_under(weights):
        def loss(logits, y):  # weighted in updates, not in evaluations
            return cases.cross_entropy(logits, y) * (weights if logits.requires_grad else 1)

        weighted = cases.build("batch_norm", optimizer, batches=batches, loss_fn=loss)
        return cases.train(weighted, losses=True).losses[-1]

    ones, step = torch.ones(cases.N, dtype=torch.float64), 1e-5
    for i in (signed.argmax(), signed.argmin()):
        heavier, lighter = ones.clone(), ones.clone()
        heavier[i] += step
        lighter[i] -= step
        expected = (loss_under(heavier) - loss_under(lighter)) / (2 * step)
        assert (signed[i] - expected).abs() <= 1e-5 * signed.abs().max()
