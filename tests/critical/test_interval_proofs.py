"""Proofs that an example is not critical: never wrong, and exact where the answer is known."""

import pytest
import torch
from torch import nn

from memtools.guard import untouched

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def test_no_proof_is_refuted(intervals, interval_model):
    check(intervals, interval_model, torch.float32)


@pytest.mark.parametrize("name", ["functional", "in place", "conv, BatchNorm, max", "log-softmax"])
def test_no_proof_in_float64_is_refuted(intervals, name):
    """A few are enough: each rule by itself is tested in both dtypes."""
    check(intervals, name, torch.float64)


def check(intervals, name, dtype):
    model, inputs, radius = intervals.build(name, dtype)
    low, high = inputs - radius, inputs + radius
    with untouched(model, evaluating=True) as forward, torch.no_grad():
        predicted = forward(inputs).argmax(1)
    proof = intervals.prove(model, low, high, predicted)
    assert proof.unsupported is None
    refuted = intervals.is_refuted(model, low, high, predicted)
    assert not (proof.is_proved & refuted).any()
    # Neither of the two is idle.
    assert proof.is_proved.float().mean() > 0.1
    assert refuted.any()


@DTYPES
def test_of_a_linear_model_all_is_known(intervals, dtype):
    """No other class exactly where each is farther behind than it can come nearer."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(50, intervals.CLASSES).to(dtype), torch.randn(500, 50).to(dtype)
    low, high = inputs - 0.1 * torch.rand(50), inputs + 0.2
    low, high = low.to(dtype), high.to(dtype)
    weight, bias = model.weight.detach().double(), model.bias.detach().double()
    predicted = model(inputs).argmax(1)
    ahead = weight[predicted][:, None] - weight  # (n, C, d)
    centre, radius = (low.double() + high.double()) / 2, (high.double() - low.double()) / 2
    margin = (ahead @ centre[:, :, None])[..., 0] + bias[predicted, None] - bias
    margin -= (ahead.abs() @ radius[:, :, None])[..., 0]
    margin.scatter_(1, predicted[:, None], torch.inf)
    nearest = margin.amin(1)
    clear = nearest.abs() > 1e-4  # rounding decides nothing there
    assert clear.sum() > 490
    assert 0.2 < (nearest > 0).float().mean() < 0.8
    for whole in (
        model,
        nn.Sequential(model, nn.LogSoftmax(1)),
        nn.Sequential(model, nn.Softmax(1)),
    ):
        is_proved = intervals.prove(whole, low, high, predicted).is_proved
        assert torch.equal(is_proved[clear], nearest[clear] > 0)


def test_the_last_layer_is_taken_in_one_piece(intervals):
    """Both logits rise with x; one of them alone tells nothing about which is the larger."""
    model = nn.Linear(1, 2).double()
    model.weight.data, model.bias.data = (
        torch.tensor([[9.0], [10.0]]).double(),
        torch.ones(2).double(),
    )
    low, high = torch.tensor([[1.0]]).double(), torch.tensor([[5.0]]).double()
    assert intervals.prove(model, low, high).is_proved.all()
    assert not intervals.prove(nn.Sequential(model, nn.ReLU()), low, high).is_proved.any()


@DTYPES
@pytest.mark.parametrize("head", [nn.Identity(), nn.Softmax(1), nn.LogSoftmax(1), nn.Tanh()])
def test_a_tie_is_not_proved(intervals, head, dtype):
    """argmax takes the first of several, but which comes first may change by rounding."""
    linear = nn.Linear(3, intervals.CLASSES).to(dtype)
    linear.weight.data[1] = linear.weight.data[0]
    linear.bias.data = torch.tensor([5.0, 5.0, 0.0, 0.0]).to(dtype)
    model, x = nn.Sequential(linear, head), torch.zeros(1, 3, dtype=dtype)
    assert not intervals.prove(model, x - 1e-9, x + 1e-9).is_proved.any()
    linear.bias.data[1] = 4.9
    assert intervals.prove(model, x - 1e-9, x + 1e-9).is_proved.all()


@pytest.mark.parametrize("head", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_softmax_may_round_different_logits_to_a_tie(intervals, head):
    linear, x = nn.Linear(1, intervals.CLASSES), torch.zeros(1, 1)
    linear.weight.data.zero_()
    model = nn.Sequential(linear, head)
    tied = 0
    for step in range(100):
        linear.bias.data = torch.tensor([0.0, 1e-9 * 1.2**step, -1.0, -1.0])
        logits, out = linear(x), model(x)
        is_tie = bool(out[0, 0] == out[0, 1]) and bool(logits[0, 0] != logits[0, 1])
        tied += is_tie
        assert not (is_tie and intervals.prove(model, x, x, torch.tensor([1])).is_proved.item())
    assert tied
    assert intervals.prove(model, x, x, torch.tensor([1])).is_proved.all()


def test_only_one_softmax_keeps_the_order_of_the_logits(intervals):
    """The second of two may make one of numbers that the first has kept apart."""
    linear, x = nn.Linear(1, 2500), torch.zeros(1, 1)
    linear.weight.data.zero_()
    linear.bias.data.zero_()[1] = 6.4e-5
    once, one = nn.Sequential(linear, nn.Softmax(1)), torch.tensor([1])
    assert once(x)[0, 1] > once(x)[0, 0]
    assert intervals.prove(once, x, x, one).is_proved.all()
    for second in (nn.Softmax(1), nn.LogSoftmax(1)):
        twice = once + nn.Sequential(second)
        assert twice(x)[0, 1] == twice(x)[0, 0]
        assert not intervals.prove(twice, x, x, one).is_proved.any()


def test_a_softmax_over_the_batch_keeps_no_order(intervals):
    linear, x = nn.Linear(2, 2, bias=False), torch.tensor([[0.0, 1.0], [-5.0, 10.0]])
    linear.weight.data = torch.eye(2)
    model = intervals.Function(lambda x: torch.softmax(linear(x), 0))
    assert intervals.prove(model, x, x, model(x).argmax(1)).is_proved.all()
    assert not intervals.prove(model, x, x, linear(x).argmax(1)).is_proved[0]


def test_what_is_known_of_logits_is_forgotten_when_they_are_written_to(intervals):
    """In place on the logits, on a view of them, and on what they were computed from."""
    linear = nn.Linear(2, 2).double()
    linear.weight.data, linear.bias.data = (
        torch.zeros(2, 2).double(),
        torch.tensor([1.0, 0.0]).double(),
    )

    def on_logits(x):
        logits = linear(x)
        logits[:, 1] += 100 * x[:, 0]
        return logits

    def on_a_view(x):
        logits = linear(x)
        logits.view(-1, 2)[:, 0].sub_(100 * x[:, 0])
        return logits

    def on_their_source(x):
        x = x + 0
        logits = x @ torch.eye(2).double() + linear.bias  # class 0 is ahead
        x.mul_(0)
        return logits

    x = torch.zeros(1, 2).double()
    for function in (on_logits, on_a_view):
        assert not intervals.prove(
            intervals.Function(function), x - 0.1, x + 0.1, torch.tensor([0])
        ).is_proved.any()
        assert intervals.prove(
            intervals.Function(function), x - 1e-9, x + 1e-9, torch.tensor([0])
        ).is_proved.all()
    assert not intervals.prove(
        intervals.Function(on_their_source), x - 2, x + 2, torch.tensor([0])
    ).is_proved.any()


def test_a_model_that_does_not_look_at_its_input_is_proved(intervals):
    logits = torch.tensor([1.0, 3.0, 2.0])
    model = intervals.Function(lambda x: logits.expand(len(x), 3))
    x = torch.zeros(2, 6)
    proof = intervals.prove(model, x - 1, x + 1, torch.tensor([1, 2]))
    assert proof.is_proved.tolist() == [True, False]
    logits[2] = 3
    assert not intervals.prove(model, x - 1, x + 1, torch.tensor([1, 2])).is_proved.any()


@DTYPES
def test_a_box_that_is_none_proves_nothing(intervals, dtype):
    model = nn.Linear(3, intervals.CLASSES).to(dtype)
    model.bias.data[0] = 100
    x = torch.zeros(5, 3, dtype=dtype)
    low, high = x - 1, x + 1
    low[1], high[2], low[3], low[4] = torch.nan, torch.inf, 2, -torch.finfo(dtype).max
    kept = low.clone(), high.clone()
    proof = intervals.prove(model, low, high, torch.zeros(5, dtype=torch.int64))
    assert proof.is_proved.tolist() == [True, False, False, False, False]
    assert proof.unsupported is None
    # The caller's walls stay as they were.
    torch.testing.assert_close((low, high), kept, equal_nan=True, rtol=0, atol=0)
