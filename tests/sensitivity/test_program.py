"""A recorded function does what the function did, on other numbers of the same shapes."""

import pytest
import torch
from torch.nn import functional as F

from memtools.sensitivity.program import below_autograd, record
from memtools.sensitivity.tangents import Linearised


def numbers(*shape, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_(False)


def works_in_place(x, w):
    y = x @ w
    before = y + 1
    view = y.view(-1)
    y.mul_(3)
    view[0] = 7
    return [y, view.exp(), before, before + y]


def shares_a_sum(x, w):
    y = x @ w
    total = torch.add(y, 1.0)
    other = torch.add(y, 2.0)  # y is still needed when the first sum is made
    return [total, other, total.t() + other.t()]


def repeats_itself(x, w):
    return [(x @ w).sum() + (x @ w).exp().sum(), (x @ w).t().t() * 2]


def takes_a_gradient(x, w):
    w = w.detach().requires_grad_()
    loss = F.cross_entropy(torch.relu(x @ w) @ w.t(), torch.tensor([0, 1, 2]))
    return list(torch.autograd.grad(loss, [w]))


@pytest.mark.parametrize(
    "function", [works_in_place, shares_a_sum, repeats_itself, takes_a_gradient]
)
def test_it_does_the_same_on_other_numbers(function):
    program = record(function, [numbers(3, 4), numbers(4, 5)])
    arguments = [numbers(3, 4, seed=1), numbers(4, 5, seed=2)]
    kept = [a.clone() for a in arguments]
    with below_autograd():
        found = program.compiled()(*arguments)
    for mine, theirs in zip(found, function(*[a.clone() for a in kept]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(arguments, kept, strict=True))


def test_random_numbers_come_in_the_same_order():
    def function(x):
        torch.rand(3)  # not used, but drawn
        return [F.dropout(x, 0.5), x.bernoulli(0.5)]

    x = numbers(50)
    run = record(function, [x]).compiled()
    torch.manual_seed(3)
    expected = function(x)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(run(x), expected, strict=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x if x.sum() > 0 else -x],
        lambda x: [x * x.max().item()],
        lambda x: [x[x > 0]],
    ],
)
def test_what_looks_at_values_is_refused(function):
    with pytest.raises(NotImplementedError, match="looks at values"):
        record(function, [numbers(4)])


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_derivatives_are_those_of_jvp(count):
    def function(w, x):
        h = torch.tanh(torch.addmm(w.sum(0)[:4], x, w.t()))
        h = F.layer_norm(F.gelu(h), (4,)) + torch.relu(h)
        return [F.log_softmax(h @ w, 1), h[:, 1:].cumsum(0)]

    w, x = numbers(4, 5), numbers(3, 5, seed=1)
    directions = numbers(8, 4, 5, seed=2)
    linear = Linearised(function, [w, x], directions=[directions], outputs=2)
    _, known = linear.run([w, x])
    found = linear.tangents(known, [directions], count)
    for k in range(count):
        expected = torch.func.jvp(lambda w: function(w, x), (w,), (directions[k],))[1]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[k], theirs, rtol=1e-11, atol=1e-13)
