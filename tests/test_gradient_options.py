"""The options of the gradient norms: what they find, and what they refuse."""

# What a module registers under a name is a tensor or a module to a type checker.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools import gradient_norms, input_gradient_norms, parameter_gradient_norms
from memtools.gradients.rules import RULES

TARGETS = torch.tensor([0, 2, 1, 1, 2])

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


@pytest.fixture
def make(gradient_zoo):
    """A model in float64 from a forward function and its parts."""
    return lambda forward, **parts: gradient_zoo.Model(forward, **parts).double()


def batch(*shape):
    return torch.randn(5, *shape, dtype=torch.float64)


def assert_agrees(model, x, y, oracles, loss=None, **options):
    norms = parameter_gradient_norms(model, x, y, loss_fn=loss, **options)
    expected = oracles.parameter_gradient_norms(model, x, y, loss=loss or oracles.cross_entropy)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


# check=True


def centred(m, x):
    return m.head(torch.tanh(m.fc(x)) - torch.tanh(m.fc(x)).mean(0).detach())


COUPLED = {
    "batch mean": lambda m, x: m.head(m.fc(x) - m.fc(x).mean(0)),
    "detached batch mean": centred,
    "detached mean of the inputs": lambda m, x: m.head(m.fc(x - x.mean(0).detach())),
    "previous example": lambda m, x: m.head(m.fc(x) + m.fc(x).roll(1, 0)),
    "previous example, detached": lambda m, x: m.head(m.fc(x) + m.fc(x).roll(1, 0).detach()),
    "position in the batch": lambda m, x: m.head(m.fc(x) + torch.arange(len(x)).to(x)[:, None]),
    "size of the batch": lambda m, x: m.head(m.fc(x) * len(x)),
    "last example alone": lambda m, x: m.head(
        torch.cat([m.fc(x[:-1]), m.fc(x[-1:]) + x[:1].detach()])
    ),
    "second example alone": lambda m, x: m.head(
        m.fc(x) + F.one_hot(torch.ones(()).long(), len(x)).to(x)[:, None] * x[:1].detach()
        if len(x) > 1
        else m.fc(x)
    ),
}


@pytest.mark.parametrize("name", list(COUPLED))
@pytest.mark.parametrize(
    "function", [gradient_norms, input_gradient_norms, parameter_gradient_norms]
)
def test_check_finds_couplings(make, gradient_zoo, name, function):
    model = make(COUPLED[name], fc=nn.Linear(4, 4), head=gradient_zoo.head(4))
    with pytest.raises(ValueError, match="couples the examples"):
        function(model, batch(4), TARGETS, check=True)


@pytest.mark.parametrize("name", ["batch mean", "detached batch mean", "previous example"])
def test_couplings_of_all_examples_are_found_without_check(make, gradient_zoo, name):
    model = make(COUPLED[name], fc=nn.Linear(4, 4), head=gradient_zoo.head(4))
    with pytest.raises(ValueError, match="couples the examples"):
        parameter_gradient_norms(model, batch(4), TARGETS)


def test_check_finds_couplings_of_tokens(make, gradient_zoo):
    def forward(m, x):
        hidden = m.embedding(x).mean(1)
        return m.head(hidden - hidden.mean(0).detach())

    model = make(forward, embedding=nn.Embedding(11, 4), head=gradient_zoo.head(4))
    with pytest.raises(ValueError, match="couples the examples"):
        parameter_gradient_norms(model, torch.randint(0, 11, (5, 6)), TARGETS, check=True)


def test_check_passes_good_models(gradient_case, oracles):
    case = gradient_case(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norms = parameter_gradient_norms(
            case.model, case.inputs, case.targets, loss_fn=case.loss, check=True
        )
    loss = case.loss or oracles.cross_entropy
    expected = oracles.parameter_gradient_norms(case.model, case.inputs, case.targets, loss=loss)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


def test_coupling_that_is_switched_on_between_two_calls(make, gradient_zoo):
    """On the inputs, where it leaves nothing in autograd's graph."""

    def forward(m, x):
        x = x - x.mean(0) if m.centre else x
        return m.head(torch.tanh(m.fc(x)))

    model = make(forward, fc=nn.Linear(4, 4), head=gradient_zoo.head(4), centre=False)
    x = batch(4)
    parameter_gradient_norms(model, x, TARGETS)
    model.centre = True
    with pytest.raises(ValueError, match="couples the examples"):
        parameter_gradient_norms(model, x, TARGETS)


# What is remembered of a model.


def folded(m, x):
    n, length = x.shape[:2]
    if m.turned:
        hidden = torch.tanh(m.fc(x.transpose(0, 1).reshape(n * length, -1)))
        return m.head(hidden.view(length, n, -1).mean(0))
    return m.head(torch.tanh(m.fc(x.reshape(n * length, -1))).view(n, length, -1).mean(1))


def flipped(m, x):
    hidden = torch.tanh(m.fc(x.flip(0) if m.turned else x))
    return m.head(hidden.flip(0) if m.turned else hidden).mean(1)


@pytest.mark.parametrize("forward", [folded, flipped])
def test_model_that_is_switched_between_two_calls(make, gradient_zoo, oracles, forward):
    model = make(forward, fc=nn.Linear(4, 4), head=gradient_zoo.head(4), turned=False)
    x = batch(6, 4)
    for turned in (False, False, True, True, False):
        model.turned = turned
        assert_agrees(model, x, TARGETS, oracles)


def by_permutation_matrix(m, x):
    order = F.one_hot(x.sum(1).argsort(), len(x)).to(x)
    return m.head(order.T @ torch.tanh(m.fc(order @ x)))


def by_index(m, x):
    order = x.sum(1).argsort()
    return m.head(torch.tanh(m.fc(x[order]))[order.argsort()])


@pytest.mark.parametrize("forward", [by_permutation_matrix, by_index])
def test_order_inside_that_depends_on_the_values(make, gradient_zoo, oracles, forward):
    """Sorted batches first, in which nothing moves."""
    model = make(forward, fc=nn.Linear(4, 4), head=gradient_zoo.head(4))
    x = batch(4)
    x = x[x.sum(1).argsort()]
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [3, 1, 4, 0, 2], [4, 3, 2, 1, 0]):
        assert_agrees(model, x[order], TARGETS, oracles)


def test_packed_lengths_that_change_between_two_calls(make, gradient_zoo, oracles):
    def forward(m, x):
        lengths = (x[:, :, 0] != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        packed = packed._replace(data=torch.tanh(m.fc(packed.data)))
        padded = nn.utils.rnn.pad_packed_sequence(packed, True)[0]
        return m.head(padded.sum(1))

    model = make(forward, fc=nn.Linear(4, 4), head=gradient_zoo.head(4))
    for lengths in ([3, 3, 3, 3, 3], [5, 4, 2, 3, 1], [3, 4, 2, 3, 3]):
        x = batch(5, 4)
        for row, length in zip(x, lengths, strict=True):
            row[length:] = 0
        assert_agrees(model, x, TARGETS, oracles)


def test_weights_that_are_frozen_and_replaced_between_two_calls(zoo, oracles):
    model, x, y = zoo.build("mlp", torch.float64)
    assert_agrees(model, x, y, oracles)
    model[0].requires_grad_(False)
    assert_agrees(model, x, y, oracles)
    model[0].requires_grad_(True)
    model[2] = nn.Linear(6, 3, bias=False).double()
    assert_agrees(model, x, y, oracles)
    model[2].weight = nn.Parameter(torch.ones(3, 6).double())
    assert_agrees(model, x, y, oracles)


# verify


def test_verify_passes_good_models(gradient_case, oracles):
    case = gradient_case(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norms = parameter_gradient_norms(
            case.model, case.inputs, case.targets, loss_fn=case.loss, verify=3
        )
    loss = case.loss or oracles.cross_entropy
    expected = oracles.parameter_gradient_norms(case.model, case.inputs, case.targets, loss=loss)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("function", [gradient_norms, parameter_gradient_norms])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_verify_finds_a_wrong_rule(zoo, monkeypatch, function, dtype):
    rule = RULES[F.linear]

    def half(*args, **kwargs):
        operation = rule(*args, **kwargs)
        assert operation is not None
        part = operation.parts[0]

        def build(operand, gradient, layout):
            return part.build(operand, gradient / 2, layout)

        changed = type(part)(part.weight, part.form, build)
        return type(operation)(
            operation.operand, [changed, *operation.parts[1:]], operation.batch_dims
        )

    model, x, y = zoo.build("mlp", dtype)
    function(model, x, y, verify=5)
    monkeypatch.setitem(RULES, F.linear, half)
    function(model, x, y)
    with pytest.raises(RuntimeError, match="please report this model"):
        function(model, x, y, verify=1)


def test_verify_of_more_examples_than_there_are(zoo):
    model, x, y = zoo.build("mlp", torch.float64)
    verified = parameter_gradient_norms(model, x, y, verify=100)
    assert torch.equal(verified, parameter_gradient_norms(model, x, y))


def test_verify_refuses_what_it_cannot_do(zoo):
    model, x, y = zoo.build("mlp", torch.float64)
    with pytest.raises(ValueError, match="verify must be"):
        parameter_gradient_norms(model, x, y, verify=-1)
    with pytest.raises(ValueError, match="allow_random"):
        parameter_gradient_norms(model, x, y, verify=1, allow_random=True)


# allow_random


class RecordedDropout(nn.Dropout):
    def forward(self, input):
        output = F.dropout(torch.ones_like(input), self.p, self.training)
        self.drawn.append(output.detach())
        return input * output


def dropout_mlp():
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2),
        nn.Linear(8, 3),
    )  # fmt: skip


class DropoutTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.layer.dropout1, self.layer.dropout2 = nn.Dropout(0.3), nn.Dropout(0.3)
        self.layer.dropout, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def replace_dropout(model, make):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(module, name, make(child))


@pytest.mark.parametrize(
    ("build", "shape"), [(dropout_mlp, (4,)), (DropoutTransformer, (6, 4))], ids=["mlp", "former"]
)
@pytest.mark.parametrize("function", [gradient_norms, parameter_gradient_norms])
def test_random_masks_are_those_of_one_draw(oracles, build, shape, function):
    model, x = build().double(), batch(*shape)
    drawn = []

    def recorded(dropout):
        module = RecordedDropout(dropout.p)
        module.drawn = drawn
        return module

    replace_dropout(model, recorded)
    torch.manual_seed(11)
    norms = function(model, x, TARGETS, allow_random=True)
    norms = getattr(norms, "parameters", norms)
    layers = sum(isinstance(m, RecordedDropout) for m in model.modules())
    masks = drawn[:layers]  # those of the first pass
    expected = []
    for i in range(5):
        left = [mask[i, None] for mask in masks]
        for module in model.modules():
            if isinstance(module, RecordedDropout):
                module.forward = lambda value, left=left: value * left.pop(0)
        value = oracles.cross_entropy(model(x[i, None]), TARGETS[i, None]).sum()
        gradients = torch.autograd.grad(value, list(model.parameters()))
        expected.append(torch.cat([g.flatten() for g in gradients]).norm())
    torch.testing.assert_close(norms, torch.stack(expected), rtol=oracles.FLOAT64, atol=0)


def test_random_result_is_for_the_global_state():
    model, x = dropout_mlp().double(), batch(4)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(parameter_gradient_norms(model, x, TARGETS, allow_random=True))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_randomness_is_refused_unless_allowed():
    with pytest.raises(ValueError, match="drew random numbers"):
        parameter_gradient_norms(dropout_mlp().double(), batch(4), TARGETS)


def test_random_weights_without_closed_form_are_refused(make, gradient_zoo):
    model = make(
        lambda m, x: m.head(m.drop(torch.einsum("ni,ij->nj", x, m.w))),
        w=torch.randn(4, 4), drop=nn.Dropout(0.5), head=gradient_zoo.head(4),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no closed form"):
        parameter_gradient_norms(model, batch(4), TARGETS, allow_random=True)


def test_coupling_in_train_mode_is_found_among_random_numbers(make, gradient_zoo):
    def forward(m, x):
        hidden = torch.tanh(m.fc(x))
        hidden = hidden - hidden.mean(0) if m.training else hidden
        return m.head(m.drop(hidden))

    model = make(forward, fc=nn.Linear(4, 4), drop=nn.Dropout(0.5), head=gradient_zoo.head(4))
    with pytest.raises(ValueError, match="couples the examples"):
        parameter_gradient_norms(model, batch(4), TARGETS, allow_random=True)


def test_random_order_of_the_batch(make, gradient_zoo, oracles):
    """In train mode alone, and undone in the end: no result may go to another example."""

    def forward(m, x):
        order = torch.randperm(len(x)) if m.training else torch.arange(len(x))
        return m.head(torch.tanh(m.fc(x[order]))[order.argsort()])

    model = make(forward, fc=nn.Linear(4, 4), head=gradient_zoo.head(4))
    x = batch(4)
    expected = oracles.parameter_gradient_norms(model, x, TARGETS)
    try:
        norms = parameter_gradient_norms(model, x, TARGETS, allow_random=True)
    except ValueError:
        return  # refusing it is as good
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


# Tokens.


@pytest.fixture
def embedder(gradient_zoo):
    model = gradient_zoo.Model(
        lambda m, x: m.head(torch.tanh(m.words(x)).mean(1)),
        words=nn.Embedding(11, 4),
        head=gradient_zoo.head(4),
    )
    return model.double()


IDS = torch.arange(30).reshape(5, 6) % 11


@pytest.mark.parametrize("function", [gradient_norms, input_gradient_norms])
def test_embedding_that_was_found_warns(embedder, oracles, function):
    with pytest.warns(UserWarning, match="'words'"):
        norms = function(embedder, IDS, TARGETS)
    expected = oracles.embedding_gradient_norms(embedder, IDS, TARGETS, "words")
    norms = getattr(norms, "inputs", norms)
    torch.testing.assert_close(norms, expected, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("by", ["name", "module"])
@pytest.mark.parametrize("function", [gradient_norms, input_gradient_norms])
def test_embedding_that_was_given_is_silent(embedder, by, function):
    embedding = "words" if by == "name" else embedder.words
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        function(embedder, IDS, TARGETS, embedding=embedding)
    assert not heard


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_embedding_has_input_gradients(embedder, oracles, frozen):
    embedder.words.requires_grad_(not frozen)
    expected = oracles.parameter_gradient_norms(embedder, IDS, TARGETS)
    norms = gradient_norms(embedder, IDS, TARGETS, embedding="words")
    torch.testing.assert_close(norms.parameters, expected, rtol=oracles.FLOAT64, atol=0)
    embedder.words.requires_grad_(True)
    expected = oracles.embedding_gradient_norms(embedder, IDS, TARGETS, "words")
    torch.testing.assert_close(norms.inputs, expected, rtol=oracles.FLOAT64, atol=0)


def test_parametrised_embedding_counts(embedder, oracles):
    """Its lookup is where the input gradient ends, but not the weights'."""
    nn.utils.parametrizations.weight_norm(embedder.words)
    expected = oracles.parameter_gradient_norms(embedder, IDS, TARGETS)
    norms = gradient_norms(embedder, IDS, TARGETS, embedding="words")
    torch.testing.assert_close(norms.parameters, expected, rtol=oracles.FLOAT64, atol=0)
    expected = oracles.embedding_gradient_norms(embedder, IDS, TARGETS, "words")
    torch.testing.assert_close(norms.inputs, expected, rtol=oracles.FLOAT64, atol=0)


@pytest.mark.parametrize("same", [True, False])
def test_two_lookups_are_refused(gradient_zoo, same):
    words = nn.Embedding(11, 4)
    model = gradient_zoo.Model(
        lambda m, x: m.head((m.one(x) + torch.tanh(m.two(x))).mean(1)),
        one=words,
        two=words if same else nn.Embedding(11, 4),
        head=gradient_zoo.head(4),
    ).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="looks them up once"):
            input_gradient_norms(model, IDS, TARGETS)
    if not same:
        gradient_norms(model, IDS, TARGETS, embedding="two")


@pytest.mark.parametrize(
    "function", [gradient_norms, input_gradient_norms, parameter_gradient_norms]
)
def test_integers_for_a_model_of_real_numbers(zoo, function):
    model, _, y = zoo.build("mlp", torch.float64)
    with pytest.raises(ValueError, match="inputs must be"):
        function(model, torch.arange(20).reshape(5, 4), y)


def test_unknown_embedding(embedder):
    with pytest.raises(ValueError, match="embedding must be a module"):
        input_gradient_norms(embedder, IDS, TARGETS, embedding="letters")


# Losses.


def contrastive(logits, targets):
    return F.cross_entropy(logits @ logits.mT, torch.arange(len(logits)), reduction="none")


def over_the_batch_size(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none") / len(logits)


@pytest.mark.parametrize("loss", [contrastive, over_the_batch_size])
def test_check_finds_losses_that_couple_the_examples(zoo, loss):
    model, x, y = zoo.build("mlp", torch.float64)
    with pytest.raises(ValueError, match="couple"):
        parameter_gradient_norms(model, x, y, loss_fn=loss, check=True)


def test_loss_with_weights(zoo, oracles):
    model, x, y = zoo.build("mlp", torch.float64)

    def loss(logits, targets):
        return oracles.cross_entropy(logits, targets) + model[0].weight.square().sum()

    expected = []
    for row, target in zip(x.split(1), y.split(1), strict=True):
        value = loss(model(row), target).sum()
        gradients = torch.autograd.grad(value, list(model.parameters()))
        expected.append(torch.cat([g.flatten() for g in gradients]).norm())
    norms = parameter_gradient_norms(model, x, y, loss_fn=loss)
    torch.testing.assert_close(norms, torch.stack(expected), rtol=oracles.FLOAT64, atol=0)


# Backward passes inside.


class Recomputed(torch.autograd.Function):
    """Runs a module again in its backward pass, as reversible networks do."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, *grads):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.module(x)
        torch.autograd.backward(output, grads[0])
        return x.grad, None


def test_function_that_adds_to_grad_itself(make, gradient_zoo):
    """Its weights are not in autograd's graph; leaving them out would be wrong."""

    def forward(m, x):
        return m.head(Recomputed.apply(torch.tanh(m.first(x)), m.hidden))

    parts = {"first": nn.Linear(4, 4), "hidden": nn.Linear(4, 4), "head": gradient_zoo.head(4)}
    model, x = make(forward, **parts), batch(4)
    expected = []
    for i in range(5):
        model.zero_grad()
        F.cross_entropy(model(x[i, None]), TARGETS[i, None]).backward()
        expected.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    model.zero_grad()
    try:
        norms = parameter_gradient_norms(model, x, TARGETS)
    except (ValueError, RuntimeError):
        pass  # refusing it is as good
    else:
        torch.testing.assert_close(norms, torch.stack(expected))
    assert all(p.grad is None for p in model.parameters())


# Accuracy.


def float32_loop(model, x, y):
    norms = []
    for row, target in zip(x.split(1), y.split(1), strict=True):
        loss = F.cross_entropy(model(row), target)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    return torch.stack(norms)


def test_rms_norm_with_the_eps_of_its_dtype():
    """Its default eps depends on the dtype, and counts where activations are small."""
    model, x = nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 3)), batch(6).float()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.zero_()
    norms = parameter_gradient_norms(model, x, TARGETS)
    torch.testing.assert_close(norms, float32_loop(model, x, TARGETS), rtol=1e-5, atol=0)


def positions():
    return nn.Sequential(
        nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 32), nn.AdaptiveAvgPool2d((1, 8)),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def images():
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1), nn.Tanh(), nn.Conv2d(24, 24, 3, stride=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "shape"), [(positions, (64, 48)), (images, (16, 9, 9))], ids=["linear", "conv"]
)
@pytest.mark.parametrize(("offset", "rtol"), [(0, 1e-6), (100, 1e-5)])
def test_float32_is_as_accurate_as_a_loop(build, shape, offset, rtol):
    """An offset makes the inner products of positions alike, which a Gram matrix must survive."""
    model, x = build(), batch(*shape).float() + offset
    norms = parameter_gradient_norms(model, x, TARGETS)
    torch.testing.assert_close(norms, float32_loop(model, x, TARGETS), rtol=rtol, atol=0)
