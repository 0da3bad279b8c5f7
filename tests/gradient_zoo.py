"""Further models for the gradient norms: every way to use a weight, and to hold a batch.

An entry is a function that builds a model, the shape of an example (or a function that draws a
batch of n), and for a loss other than the cross-entropy that loss and a function for the targets.
"""

# What a module registers under a name is a tensor or a module to a type checker.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

N = 5
CLASSES = 3
VOCABULARY = 11

Draw = Callable[[int], Tensor]


class Entry(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...] | Draw
    targets: Draw
    loss: Callable[[Tensor, Tensor], Tensor] | None


class Case(NamedTuple):
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor] | None


MODELS: dict[str, Entry] = {}


def class_numbers(n: int) -> Tensor:
    return torch.tensor([0, 2, 1, 1, 2]).repeat(n // 5 + 1)[:n]


def tokens(length: int) -> Draw:
    return lambda n: torch.randint(0, VOCABULARY, (n, length))


def each_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of a language model, summed over the tokens."""
    log_p = logits - logits.logsumexp(2, keepdim=True)
    return -log_p.gather(2, targets[..., None])[..., 0].sum(1)


def entry(
    name: str,
    inputs: tuple[int, ...] | Draw,
    targets: Draw = class_numbers,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in MODELS
        MODELS[name] = Entry(build, inputs, targets, loss)
        return build

    return register


def build(name: str, dtype: torch.dtype, n: int = N) -> Case:
    """The same model, weights and batch for the same name, but for rounding to ``dtype``."""
    make = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make.build().to(dtype)
        if callable(make.inputs):
            inputs = make.inputs(n)
        else:
            inputs = torch.randn(n, *make.inputs, dtype=torch.float64)
        targets = make.targets(n)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return Case(model, inputs, targets, make.loss)


class Model(nn.Module):
    """A forward function over its modules, its weights (given as tensors), and anything else."""

    def __init__(self, forward: Callable[["Model", Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            weight = isinstance(part, Tensor) and not isinstance(part, nn.Parameter)
            setattr(self, name, nn.Parameter(part) if weight else part)

    def forward(self, x):
        return self.function(self, x)


def head(width: int) -> nn.Linear:
    return nn.Linear(width, CLASSES)


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape) / shape[-1] ** 0.5


# Weights that are used more than once, or through a view.


@entry("shared module", (4,))
def shared_module():
    return Model(
        lambda m, x: m.head(torch.tanh(m.fc(torch.tanh(m.fc(x))))), fc=nn.Linear(4, 4), head=head(4)
    )


@entry("shared module on 2 and 3 dimensions", (6, 4))
def shared_dimensions():
    return Model(
        lambda m, x: m.head(torch.tanh(m.fc(torch.tanh(m.fc(x)).mean(1)))),
        fc=nn.Linear(4, 4),
        head=head(4),
    )


@entry("shared LayerNorm on 2 and 3 dimensions", (6, 4))
def shared_layer_norm():
    return Model(
        lambda m, x: m.head(m.norm(torch.tanh(m.norm(x)).sum(1))),
        norm=nn.LayerNorm(4),
        head=head(4),
    )


@entry("shared PReLU on images and vectors", (2, 5, 5))
def shared_prelu():
    return Model(
        lambda m, x: m.head(m.act(m.fc(m.act(m.conv(x)).flatten(1)))),
        act=nn.PReLU(),
        conv=nn.Conv2d(2, 3, 3),
        fc=nn.Linear(27, 6),
        head=head(6),
    )


@entry("shared offset on 2 and 3 dimensions", (6, 4))
def shared_offset():
    return Model(
        lambda m, x: m.head(torch.tanh(x + m.offset).sum(1) + m.offset),
        offset=matrix(4),
        head=head(4),
    )


@entry("tied and transposed", (4,))
def tied_transposed():
    def forward(m, x):
        hidden = torch.tanh(x @ m.weight)
        return m.head(torch.tanh(F.linear(hidden, m.weight)) + F.linear(x, m.square.T) @ m.square)

    return Model(forward, weight=matrix(4, 6), square=matrix(4, 4), head=head(4))


@entry("autoencoder with tied convolutions", (2, 7, 6))
def tied_convolutions():
    def forward(m, x):
        code = torch.tanh(F.conv2d(x, m.weight, stride=2, padding=1))
        again = F.conv_transpose2d(code, m.weight, stride=2, padding=1)
        return m.head(torch.tanh(again).mean((2, 3)))

    return Model(forward, weight=matrix(4, 2, 3, 3), head=head(2))


@entry("convolution twice at different resolutions", (3, 8, 8))
def conv_twice():
    def forward(m, x):
        fine = torch.relu(m.conv(x))
        return m.head(torch.relu(m.conv(F.max_pool2d(fine, 2))).flatten(1))

    return Model(forward, conv=nn.Conv2d(3, 3, 3, padding=1), head=head(48))


@entry("one weight with different groups", (4, 6))
def different_groups():
    def forward(m, x):
        whole = torch.tanh(F.conv1d(x[:, :2], m.weight, padding=1))
        return m.head((whole + F.conv1d(x, m.weight, padding=1, groups=2)).mean(2))

    return Model(forward, weight=matrix(4, 2, 3), head=head(4))


@entry("packed qkv in chunks", (6, 4))
def packed():
    def forward(m, x):
        q, k, v = (F.linear(x, w, b) for w, b in zip(m.w.chunk(3), m.b.chunk(3), strict=True))
        return m.head((torch.softmax(q @ k.mT, -1) @ v).mean(1))

    return Model(forward, w=matrix(12, 4), b=matrix(12), head=head(4))


@entry("slices of a weight", (6,))
def slices():
    def forward(m, x):
        rows, columns = F.linear(x, m.w[::2]), F.linear(x[:, :3], m.w[:, 1::2])
        return torch.tanh(rows) + torch.tanh(columns)[:, :3] + F.linear(x, m.v[::2])

    return Model(forward, w=matrix(6, 6), v=matrix(6, 6))


@entry("overlapping slices of a weight", (4,))
def overlapping():
    return Model(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.w[:4])) * F.linear(x, m.w[2:])),
        w=matrix(6, 4),
        head=head(4),
    )


@entry("overlapping view of a weight", (4,))
def unfolded():
    return Model(lambda m, x: F.linear(x, m.w.unfold(0, 4, 2)), w=matrix(8))


@entry("weight and bias in one tensor", (4,))
def weight_and_bias():
    return Model(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.w[:, :4], m.w[:, 4]))),
        w=matrix(6, 5),
        head=head(6),
    )


@entry("weight in float64 and by views of views", (4,))
def other_dtype():
    def forward(m, x):
        wide = F.linear(x.double(), m.w.to(torch.float64)).to(x.dtype)
        return m.head(
            torch.tanh(wide) + F.linear(x, m.v.view(2, 2, 4).transpose(0, 1)[1]).repeat(1, 2)
        )

    return Model(forward, w=matrix(4, 4), v=matrix(4, 4), head=head(4))


@entry("alias of a weight", (4,))
def alias():
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), head(4)
            self.alias = [self.fc.weight]

        def forward(self, x):
            return self.head(torch.tanh(F.linear(torch.tanh(self.fc(x)), self.alias[0])))

    return Alias()


@entry("weight also without gradient and detached", (4,))
def detached():
    def forward(m, x):
        with torch.no_grad():
            scale = m.fc(x).abs().mean(1, keepdim=True)
        still = F.linear(x, m.fc.weight.detach())
        return m.head(torch.tanh(m.fc(x) * scale + still)) + m.frozen(x).detach()

    return Model(forward, fc=nn.Linear(4, 4), frozen=head(4), head=head(4))


# Raw parameters and functional calls.


@entry("functional calls", (2, 6, 6))
def functional():
    def forward(m, x):
        hidden = torch.relu(F.conv2d(input=x, weight=m.kernel, bias=m.shift, stride=(2, 1)))
        return F.linear(hidden.flatten(1), weight=m.w, bias=m.b)

    return Model(forward, kernel=matrix(3, 2, 3, 2), shift=matrix(3), w=matrix(3, 30), b=matrix(3))


class ScaledLinear(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.rand(sizes[1]) + 0.5)

    def forward(self, input):
        return super().forward(input) * self.scale


@entry("subclass of Linear", (4,))
def subclass():
    return nn.Sequential(ScaledLinear(4, 6), nn.Tanh(), ScaledLinear(6, CLASSES))


@entry("raw parameters everywhere", (6, 4))
def raw():
    def forward(m, x):
        n = len(x)
        token = m.token.expand(n, -1, -1)
        repeated = m.repeated.repeat(n, 1, 1)
        x = torch.cat([token, x, repeated, m.mean.expand_as(x)[:, :1]], 1) + m.positions
        x = m.middle * x[:, :, None] - m.minus  # (n, 9, 2, 4)
        x += m.in_place
        return m.head(torch.tanh(x).mul(m.scale).sum((1, 2))) * m.temperature

    return Model(
        forward,
        token=matrix(1, 1, 4),
        repeated=matrix(1, 1, 4),
        mean=matrix(4),
        positions=matrix(1, 9, 4),
        middle=matrix(9, 2, 1),
        minus=matrix(2, 1),
        in_place=matrix(9, 1, 4),
        scale=matrix(4),
        temperature=torch.tensor(0.7),
        head=head(4),
    )


@entry("token expanded, used whole and in part", (6, 4))
def token_twice():
    def forward(m, x):
        token = m.token.expand(len(x), -1, -1)
        x = torch.tanh(torch.cat([token, x], 1))
        return m.head(x.sum(1) + token.squeeze(1).square() + token.transpose(0, 1)[0])

    return Model(forward, token=matrix(1, 1, 4), head=head(4))


@entry("weight that meets itself", (4,))
def with_itself():
    def forward(m, x):
        return m.head(torch.tanh(x * (m.row * m.row)) @ (m.square @ m.square) + (m.row + m.row))

    return Model(forward, row=matrix(1, 4), square=matrix(4, 4), head=head(4))


@entry("scalars", (4,))
def scalars():
    return Model(
        lambda m, x: m.head(torch.tanh(x * m.a + m.b) - m.a) / m.c,
        a=torch.tensor(0.7),
        b=torch.tensor([0.3]),
        c=torch.tensor(1.3),
        head=head(4),
    )


@entry("weights repeated by expand_as", (6, 4))
def expanded_as():
    def forward(m, x):
        return m.head(torch.tanh(x * m.scale.expand_as(x) + m.shift.expand_as(x)[:, :1]).sum(1))

    return Model(forward, scale=matrix(4), shift=matrix(6, 4), head=head(4))


@entry("no positions", (0, 4))
def no_positions():
    return Model(lambda m, x: m.head(m.fc(x).sum(1)), fc=nn.Linear(4, 4), head=head(4))


@entry("layer without inputs", (6, 4))
def no_inputs():
    return Model(
        lambda m, x: m.head(torch.tanh(x + m.fc(x[..., :0])).sum(1)),
        fc=nn.Linear(0, 4),
        head=head(4),
    )


@entry("no weight with a closed form", (4,))
def nothing_closed():
    return Model(lambda m, x: torch.einsum("ni,ij->nj", x, m.w), w=matrix(4, CLASSES))


@entry("one bias for all units", (6, 4))
def one_bias():
    def forward(m, x):
        x = torch.tanh(torch.addmm(m.b, x.mean(1), m.w))
        return m.head(torch.tanh(F.linear(x, m.v) + m.c))

    return Model(forward, w=matrix(4, 4), b=matrix(1), v=matrix(4, 4), c=matrix(1), head=head(4))


@entry("hypernetwork", (4,))
def hypernetwork():
    def forward(m, x):
        made = m.maker(m.code).view(4, 4)
        return m.head(torch.tanh(F.linear(x, made)))

    return Model(forward, code=matrix(1, 3), maker=nn.Linear(3, 16), head=head(4))


@entry("hypernetwork of the input", (4,))
def own_weights():
    def forward(m, x):
        return m.head(torch.tanh(torch.bmm(m.maker(x).view(-1, 4, 4), x[:, :, None])[:, :, 0]))

    return Model(forward, maker=nn.Linear(4, 16), head=head(4))


@entry("all kinds of products", (6, 4))
def products():
    def forward(m, x):
        x = torch.tanh(torch.matmul(x, m.a) + x @ m.a.T)
        x = torch.tanh(m.left @ x)
        x = torch.tanh(torch.einsum("ntd,de->nte", x, m.b))
        x = torch.tanh(torch.bmm(x.transpose(0, 1), m.stacked).transpose(0, 1))
        x = torch.baddbmm(m.offset, x.transpose(0, 1), m.stacked).transpose(0, 1)
        x = torch.addmm(m.bias, x.reshape(-1, 4), m.c).view(x.shape)
        x = torch.tensordot(x, m.d, 1)
        return torch.mv(x.flatten(0, 1), m.vector).view(len(x), -1)[:, :CLASSES] + m.head(x[:, 0])

    return Model(
        forward,
        a=matrix(4, 4),
        left=matrix(6, 6),
        b=matrix(4, 4),
        stacked=matrix(6, 4, 4),
        offset=matrix(6, 1, 4),
        bias=matrix(4),
        c=matrix(4, 4),
        d=matrix(4, 4),
        vector=matrix(4),
        head=head(4),
    )


class GPTConv1D(nn.Module):
    """The linear layer of GPT-2."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(matrix(d, width)), nn.Parameter(matrix(width))

    def forward(self, x):
        folded = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return folded.view(*x.shape[:-1], -1)


@entry("addmm over folded positions", (6, 4))
def gpt_conv():
    return Model(
        lambda m, x: m.head(torch.tanh(m.two(torch.tanh(m.one(x)))).mean(1)),
        one=GPTConv1D(4, 7),
        two=GPTConv1D(7, 4),
        head=head(4),
    )


# Attention.


def attention(call: Callable[[Model, Tensor], Tensor], **options: Any) -> nn.Module:
    return Model(call, attention=nn.MultiheadAttention(4, 2, **options), head=head(4))


@entry("attention, sequence first inside", (6, 4))
def attention_second():
    def forward(m, x):
        x = x.transpose(0, 1)
        return m.head(m.attention(x, x, x, need_weights=False)[0].mean(0))

    return attention(forward)


@entry("attention, as many positions as examples", (N, 4))
def attention_square():
    def forward(m, x):
        x = torch.tanh(m.first(x.transpose(0, 1)))
        return m.head(m.attention(x, x, x)[0].mean(0))

    model = attention(forward)
    model.first = nn.Linear(4, 4)
    return model


@entry("attention with separate projections and cross attention", (6, 4))
def attention_cross():
    def forward(m, x):
        queries = m.queries.expand(len(x), -1, -1)
        return m.head(m.attention(queries, m.key(x), x[..., :2])[0].mean(1))

    model = attention(forward, kdim=5, vdim=2, batch_first=True)
    model.key, model.queries = nn.Linear(4, 5), nn.Parameter(matrix(1, 3, 4))
    return model


@entry("attention with biases for keys and values, and a mask", (6, 4))
def attention_biased():
    def forward(m, x):
        mask = (torch.arange(6) > 3).expand(len(x), 6)
        return m.head(m.attention(x, x, x, key_padding_mask=mask)[0].mean(1))

    return attention(forward, add_bias_kv=True, add_zero_attn=True, batch_first=True)


@entry("transformer decoder layer, norm first", (6, 4))
def decoder():
    def forward(m, x):
        return m.head(m.layer(x, m.memory(x)).mean(1))

    layer = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
    return Model(forward, layer=layer, memory=nn.Linear(4, 4), head=head(4))


@entry("transformer encoder in eval", (6, 4))
def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    return Model(
        lambda m, x: m.head(m.encoder(x.transpose(0, 1)).mean(0)), encoder=encoder, head=head(4)
    ).eval()


@entry("relative positions", (6, 4))
def relative():
    def forward(m, x):
        q = m.q(x).unflatten(2, (2, 2)).transpose(1, 2).flatten(0, 1)  # (n * heads, T, d)
        scores = q @ q.mT + m.bias
        folded = (torch.softmax(scores, -1) @ q).unflatten(0, (-1, 2))
        scores = (folded @ folded.mT) + m.by_head
        return m.head((torch.softmax(scores, -1) @ folded).transpose(1, 2).flatten(2).mean(1))

    return Model(
        forward, q=nn.Linear(4, 4), bias=matrix(6, 6), by_head=matrix(2, 6, 6), head=head(4)
    )


# Parametrised weights.


@entry("weight_norm of a convolution and an embedding", tokens(6))
def weight_normed():
    embedding = parametrizations.weight_norm(nn.Embedding(VOCABULARY, 4))
    conv = parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    return Model(
        lambda m, x: m.head(torch.tanh(m.conv(m.embedding(x).mT)).mean(2)),
        embedding=embedding,
        conv=conv,
        head=head(4),
    )


@entry("spectral_norm in eval, orthogonal", (4,))
def parametrised():
    spectral = parametrizations.spectral_norm(nn.Linear(4, 4))
    orthogonal = parametrizations.orthogonal(nn.Linear(4, 4))
    return nn.Sequential(spectral, nn.Tanh(), orthogonal, nn.Tanh(), head(4)).eval()


@entry("low rank beside a frozen weight", (6, 4))
def low_rank():
    def forward(m, x):
        return m.head(torch.tanh(m.fc(x) + 2 * m.up(m.down(x)) + x @ (m.a @ m.b)).mean(1))

    model = Model(
        forward,
        fc=nn.Linear(4, 4),
        down=nn.Linear(4, 2, bias=False),
        up=nn.Linear(2, 4, bias=False),
        a=matrix(4, 1),
        b=matrix(1, 4),
        head=head(4),
    )
    model.fc.requires_grad_(False)
    return model


# In place.


@entry("in place after everything", (4, 6, 6))
def in_place():
    def forward(m, x):
        x = m.conv(x).relu_()
        x = m.norm(x).mul_(2)
        x = m.fc(x.flatten(2).mT).relu_()  # (n, 16, 5)
        x = m.fc2(x).view(len(x), 4, 4, 5).permute(0, 3, 1, 2).sigmoid_()
        x = m.fc3(x.flatten(1)).tanh_() * 1
        x[:, :2].mul_(3)
        x[:, 0] = x[:, 1] * 2
        return m.head(x)

    return Model(
        forward,
        conv=nn.Conv2d(4, 6, 3),
        norm=nn.GroupNorm(2, 6),
        fc=nn.Linear(6, 5),
        fc2=nn.Linear(5, 5),
        fc3=nn.Linear(80, 4),
        head=head(4),
    )


@entry("in place on what a weight was added to", (6, 4))
def in_place_add():
    def forward(m, x):
        y = m.fc(x)
        y += m.positions
        y.relu_()
        z = y.sum(1)
        z[:, 0] += m.one
        part = z[:, 1:3]
        part -= m.two
        return m.head(z) + m.head(part.repeat(1, 2))

    return Model(
        forward,
        fc=nn.Linear(4, 4),
        positions=matrix(6, 4),
        one=matrix(1),
        two=matrix(2),
        head=head(4),
    )


@entry("in place on the operand of a sum", (4,))
def in_place_operand():
    def forward(m, x):
        x = m.fc(x)
        y = x + m.offset
        x.relu_()
        return m.head(torch.tanh(y) + x)

    return Model(forward, fc=nn.Linear(4, 4), offset=matrix(4), head=head(4))


@entry("biases alone, in place on the operands", (4, 6))
def biases_alone():
    def forward(m, x):
        z = torch.tanh(m.conv(x)).mean(2) * 2
        w = m.fc(z)
        z.add_(1)
        return m.head(torch.tanh(w) + z)

    model = Model(forward, conv=nn.Conv1d(4, 4, 3), fc=nn.Linear(4, 4), head=head(4))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    return model


# Convolutions.


@entry("Conv1d of all kinds", (4, 15))
def conv1d():
    return nn.Sequential(
        nn.Conv1d(4, 6, 4, padding="same", groups=2),
        nn.Tanh(),
        nn.Conv1d(6, 6, 3, padding=2, dilation=2, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(6, 6, 3, padding=1, padding_mode="reflect", groups=6, bias=False),
        nn.Tanh(),
        nn.Conv1d(6, 4, 2, stride=3),
        nn.Flatten(),
        head(20),
    )


@entry("Conv2d of all kinds", (4, 9, 8))
def conv2d():
    return nn.Sequential(
        nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, padding=(2, 1), padding_mode="circular", groups=3),
        nn.Tanh(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6),
        nn.Tanh(),
        nn.Conv2d(12, 5, 1, stride=2),
        nn.Tanh(),
        nn.Conv2d(5, 4, (1, 2), stride=(3, 3), padding=(0, 1)),
        nn.Flatten(),
        head(16),
    )


@entry("Conv2d with more pixels than channels", (1, 12, 11))
def conv2d_few_channels():
    return nn.Sequential(
        nn.Conv2d(1, 40, 5, padding=2, stride=2),
        nn.Tanh(),
        nn.Conv2d(40, 50, 3, dilation=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(50, 40, 3, padding="valid", stride=(1, 2)),
        nn.Flatten(),
        head(80),
    )


@entry("Conv3d of all kinds", (2, 5, 6, 7))
def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 2), padding=(1, 0, 0), groups=2),
        nn.Tanh(),
        nn.Conv3d(4, 4, 2, padding="same", dilation=(1, 1, 2)),
        nn.Tanh(),
        nn.Conv3d(4, 3, 2, stride=3),
        nn.Flatten(),
        head(6),
    )


@entry("transposed convolutions", (4, 5))
def transposed():
    def forward(m, x):
        x = torch.tanh(m.one(x))
        x = torch.tanh(m.two(x.unflatten(2, (-1, 2))))
        x = torch.tanh(m.three(x[:, :, None]))
        return m.head(x.mean((2, 3, 4)))

    return Model(
        forward,
        one=nn.ConvTranspose1d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        two=nn.ConvTranspose2d(
            4, 6, (2, 3), stride=(1, 3), output_padding=(0, 1), dilation=(2, 1), padding=(1, 0)
        ),
        three=nn.ConvTranspose3d(6, 3, (2, 1, 2), stride=(1, 2, 1), groups=3, bias=False),
        head=head(3),
    )


@entry("frames in the batch", (3, 2, 6, 6))
def frames():
    def forward(m, x):
        n, k = x.shape[:2]
        features = torch.relu(m.norm(m.conv(x.flatten(0, 1))))
        return m.head(m.fc(features.flatten(1)).view(n, k, -1).sum(1))

    return Model(
        forward, conv=nn.Conv2d(2, 4, 3), norm=nn.GroupNorm(2, 4), fc=nn.Linear(64, 5), head=head(5)
    )


@entry("frames in the batch, one after the other", (3, 2, 6, 6))
def frames_second():
    def forward(m, x):
        n, k = x.shape[:2]
        features = torch.relu(m.batch_norm(m.conv(x.transpose(0, 1).flatten(0, 1))))
        return m.head(torch.tanh(m.act(m.fc(features.flatten(1)))).view(k, n, -1).sum(0))

    norm = nn.BatchNorm2d(4)
    norm.eval()
    return Model(
        forward,
        conv=nn.Conv2d(2, 4, 3, groups=2),
        batch_norm=norm,
        fc=nn.Linear(64, 5),
        act=nn.PReLU(5),
        head=head(5),
    )


@entry("views of an image beside each other", (2, 6, 6))
def augmented():
    """Each example with its mirror image in the same batch."""

    def forward(m, x):
        x = torch.cat([x, x.flip(3)])
        return m.head(torch.tanh(m.conv(x)).flatten(1)).unflatten(0, (2, -1)).sum(0)

    return Model(forward, conv=nn.Conv2d(2, 3, 3), head=head(48))


# Where the examples are.


@entry("linear on (T, n, d)", (6, 4))
def linear_second():
    return Model(
        lambda m, x: m.head(torch.tanh(m.fc(x.transpose(0, 1))).mean(0)),
        fc=nn.Linear(4, 4),
        head=head(4),
    )


@entry("linear on (n * T, d)", (6, 4))
def linear_folded():
    return Model(
        lambda m, x: m.head(torch.tanh(m.fc(x.flatten(0, 1))).unflatten(0, (-1, 6)).mean(1)),
        fc=nn.Linear(4, 4),
        head=head(4),
    )


@entry("linear on (T * n, d)", (6, 4))
def linear_folded_second():
    return Model(
        lambda m, x: m.head(
            torch.tanh(m.fc(x.transpose(0, 1).flatten(0, 1))).unflatten(0, (6, -1)).mean(0)
        ),
        fc=nn.Linear(4, 4),
        head=head(4),
    )


@entry("linear on (n, d, T) transposed and on a grid", (4, 6))
def linear_transposed():
    def forward(m, x):
        x = torch.tanh(m.fc(x.mT))
        x = torch.tanh(m.fc2(x.unflatten(1, (2, 3)).permute(1, 0, 2, 3)))  # (2, n, 3, 4)
        x = m.norm(x.permute(2, 0, 1, 3))  # (3, 2, n, 4)
        return m.head((x + m.offset).sum((0, 1)))

    return Model(
        forward,
        fc=nn.Linear(4, 4),
        fc2=nn.Linear(4, 4),
        norm=nn.LayerNorm(4),
        offset=matrix(3, 1, 1, 4),
        head=head(4),
    )


@entry("as many positions as examples", (N, 4))
def square():
    def forward(m, x):
        x = torch.tanh(m.fc(x.transpose(0, 1)) + m.positions) * m.scale
        return m.head(m.norm(x).sum(0))

    return Model(
        forward,
        fc=nn.Linear(4, 4),
        positions=matrix(N, 1, 4),
        scale=matrix(4),
        norm=nn.LayerNorm(4),
        head=head(4),
    )


@entry("batch in reverse", (4,))
def in_reverse():
    return Model(
        lambda m, x: m.head(torch.tanh(m.fc(x.flip(0))).flip(0)), fc=nn.Linear(4, 4), head=head(4)
    )


def sorting(key: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(m, x):
        order = key(x).argsort()
        sorted_ = torch.tanh(m.fc(x[order]) + m.offset)
        return m.head(sorted_[order.argsort()])

    return Model(forward, fc=nn.Linear(4, 4), offset=matrix(4), head=head(4))


@entry("batch sorted inside", (4,))
def sorts():
    return sorting(lambda x: x.sum(1))


def partly_sorted(n: int) -> Tensor:
    """Only the first two are to change places."""
    x = torch.randn(n, 4, dtype=torch.float64)
    order = x.sum(1).argsort()
    return x[torch.cat([order[:2].flip(0), order[2:]])]


@entry("batch sorted inside, nearly sorted before", partly_sorted)
def sorts_a_little():
    return sorts()


def mixture(positions: bool) -> Callable[[], nn.Module]:
    def forward(m, x):
        flat = x.flatten(0, -2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(m.experts):
            chosen = (flat[:, 0] > 0) == bool(number)
            if chosen.any():
                out[chosen] = torch.tanh(expert(flat[chosen]))
        out = out.view(x.shape)
        return m.head(out.mean(1) if positions else out)

    return lambda: Model(
        forward, experts=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), head=head(4)
    )


entry("mixture of experts", (4,))(mixture(False))
entry("mixture of experts over tokens", (6, 4))(mixture(True))


def uneven(n: int) -> Tensor:
    """The first expert gets two tokens of example 0, none of example 1, one of each other."""
    x = torch.randn(n, 2, 4, dtype=torch.float64).abs()
    x[0, :, 0] *= -1
    x[2:, 0, 0] *= -1
    return x


entry("mixture of experts with as many tokens as examples", uneven)(mixture(True))


@entry("packed sequences", (6, 4))
def packed_sequences():
    def forward(m, x):
        lengths = 2 + (x[:, 0, 0] > 0).long() * 2 + (x[:, 0, 1] > 0)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        h = torch.tanh(m.fc(packed.data))
        packed = nn.utils.rnn.PackedSequence(
            h, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        return m.head(nn.utils.rnn.pad_packed_sequence(packed, True)[0].sum(1))

    return Model(forward, fc=nn.Linear(4, 4), head=head(4))


# Embeddings.


@entry("embedding with padding", tokens(6))
def padding():
    return Model(
        lambda m, x: m.head(torch.tanh(m.embedding(x) + m.positions(torch.arange(6))).mean(1)),
        embedding=nn.Embedding(VOCABULARY, 4, padding_idx=VOCABULARY - 1),
        positions=nn.Embedding(6, 4),
        head=head(4),
    )


@entry("embedding of single tokens", lambda n: torch.randint(0, VOCABULARY, (n,)))
def single_tokens():
    return nn.Sequential(nn.Embedding(VOCABULARY, 4, padding_idx=0), nn.Tanh(), head(4))


@entry("embedding, sequence first", tokens(6))
def tokens_first():
    return Model(
        lambda m, x: m.head(torch.tanh(m.embedding(x.T)).mean(0)),
        embedding=nn.Embedding(VOCABULARY, 4),
        head=head(4),
    )


@entry("embedding with max_norm", tokens(6))
def max_norm():
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 4, max_norm=1.0)
            self.fc, self.head = nn.Linear(4, 4), head(4)
            self.alias = [self.fc.weight]

        def forward(self, x):
            hidden = torch.tanh(self.embedding(x)).mean(1)
            return self.head(torch.tanh(F.linear(torch.tanh(self.fc(hidden)), self.alias[0])))

    return Bounded()


@entry("embedding scaled by frequency", tokens(6))
def by_frequency():
    return Model(
        lambda m, x: m.head(torch.tanh(m.embedding(x)).mean(1)),
        embedding=nn.Embedding(4 * VOCABULARY, 4, scale_grad_by_freq=True),
        head=head(4),
    )


@entry("sparse embedding", tokens(6))
def sparse():
    return Model(
        lambda m, x: m.head(torch.tanh(m.embedding(x)).mean(1) + m.bag(x)),
        embedding=nn.Embedding(VOCABULARY, 4, sparse=True),
        bag=nn.EmbeddingBag(VOCABULARY, 4, mode="sum", sparse=True),
        head=head(4),
    )


@entry("EmbeddingBag", tokens(6))
def bag():
    return nn.Sequential(nn.EmbeddingBag(VOCABULARY, 4), nn.Tanh(), head(4))


@entry("embedding and head tied", tokens(6), tokens(6), each_token)
def tied_embedding():
    def forward(m, x):
        return torch.tanh(m.fc(m.embedding(x))) @ m.embedding.weight.T

    return Model(forward, embedding=nn.Embedding(VOCABULARY, 4), fc=nn.Linear(4, 4))


@entry("factorised embedding", tokens(6))
def factorised():
    return Model(
        lambda m, x: m.head(torch.tanh(F.embedding(x, m.a @ m.b)).mean(1)),
        a=matrix(VOCABULARY, 2),
        b=matrix(2, 4),
        head=head(4),
    )


# Normalisation.


def random_statistics(norm: nn.Module) -> nn.Module:
    size = norm.num_features
    state = {"running_mean": torch.randn(size), "running_var": torch.rand(size) + 0.5}
    norm.load_state_dict(norm.state_dict() | state)
    return norm


def random_affine(model: nn.Module) -> nn.Module:
    """Scales other than one, as after training."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 1 and name == "weight":
                nn.init.uniform_(weight, 0.5, 1.5)
    return model


@entry("LayerNorm, GroupNorm, RMSNorm of all kinds", (4, 6, 5))
def norms():
    return random_affine(
        nn.Sequential(
            nn.LayerNorm((6, 5)),
            nn.Conv2d(4, 4, 1),
            nn.GroupNorm(2, 4, eps=0.1),
            nn.LayerNorm(5, bias=False),
            nn.LayerNorm(5, elementwise_affine=False),
            nn.Tanh(),
            nn.RMSNorm((6, 5)),
            nn.RMSNorm(5, eps=0.3),
            nn.GroupNorm(1, 4),
            nn.LocalResponseNorm(3, alpha=0.5),
            nn.InstanceNorm2d(4, affine=True),
            nn.Tanh(),
            nn.Flatten(),
            head(120),
        )
    )


@entry("normalisation by statistics", (4, 6))
def statistics():
    return random_affine(
        nn.Sequential(
            random_statistics(nn.BatchNorm1d(4)),
            nn.Conv1d(4, 4, 2),
            random_statistics(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
            nn.Tanh(),
            nn.Unflatten(2, (5, 1)),
            random_statistics(nn.BatchNorm2d(4)),
            nn.Unflatten(3, (1, 1)),
            nn.Conv3d(4, 4, 1),
            random_statistics(nn.BatchNorm3d(4, affine=True, eps=0.1)),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(20, 6),
            random_statistics(nn.BatchNorm1d(6)),
            nn.Tanh(),
            head(6),
        )
    ).eval()


@entry("PReLU of all kinds", (3, 4, 4))
def prelus():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.PReLU(4),
        nn.Conv2d(4, 2, 2),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(18, 5),
        nn.PReLU(5),
        nn.PReLU(),
        head(5),
    )


# What has no closed form.


@entry("bilinear", (4,))
def bilinear():
    return Model(
        lambda m, x: m.head(torch.tanh(m.both(m.one(x), torch.tanh(x)))),
        one=nn.Linear(4, 5),
        both=nn.Bilinear(5, 4, 3),
        head=head(3),
    )


@entry("recurrent layers", (5, 4))
def recurrent():
    def forward(m, x):
        x = m.gru(x)[0]
        x = m.rnn(x.transpose(0, 1))[0].transpose(0, 1)
        return m.head(m.lstm(x)[0][:, -1])

    return Model(
        forward,
        gru=nn.GRU(4, 4, batch_first=True),
        rnn=nn.RNN(4, 4),
        lstm=nn.LSTM(4, 3, batch_first=True, bidirectional=True, proj_size=2),
        head=head(4),
    )


@entry("recurrent cells in a loop", (5, 4))
def cells():
    def forward(m, x):
        h, c = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        for x_t in x.unbind(1):
            h, c = m.lstm(x_t, (m.gru(x_t, m.rnn(x_t, h)), c))
            h = torch.tanh(m.step(torch.cat([h, x_t], 1)))
        return m.head(h)

    return Model(
        forward,
        lstm=nn.LSTMCell(4, 4),
        gru=nn.GRUCell(4, 4),
        rnn=nn.RNNCell(4, 4),
        step=nn.Linear(8, 4),
        head=head(4),
    )


class WeightedCube(torch.autograd.Function):
    """A function of the old kind with a weight inside."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return (x**3) @ w

    @staticmethod
    def backward(ctx, *grads):
        x, w = ctx.saved_tensors
        return 3 * x**2 * (grads[0] @ w.T), (x**3).T @ grads[0]


@entry("custom function with a weight", (4,))
def custom():
    return Model(
        lambda m, x: m.head(WeightedCube.apply(torch.tanh(m.fc(x)), m.w)),
        fc=nn.Linear(4, 4),
        w=matrix(4, 4),
        head=head(4),
    )


class HalfGradient(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] / 2


@entry("weight through a function that returns a view", (4,))
def halved():
    return Model(
        lambda m, x: m.head(torch.tanh(F.linear(HalfGradient.apply(x), HalfGradient.apply(m.w)))),
        w=matrix(4, 4),
        head=head(4),
    )


@entry("hook on the output of a layer", (6, 4))
def hooked():
    def forward(m, x):
        for layer in (m.one, m.two):
            x = layer(x)
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient / 2)
            x = torch.tanh(x.mean(1) if x.ndim == 3 else x)
        return m.head(x)

    return Model(forward, one=nn.Linear(4, 4), two=nn.Linear(4, 4), head=head(4))


@entry("hook on a view of a weight", (4,))
def hooked_view():
    def forward(m, x):
        weight = m.w.view(4, 4)
        if weight.grad_fn is not None:
            weight.register_hook(lambda gradient: gradient / 2)
        return m.head(torch.tanh(F.linear(x, weight)))

    return Model(forward, w=matrix(2, 8), head=head(4))


@entry("checkpoint", (6, 4))
def checkpointed():
    def forward(m, x):
        x = checkpoint(m.block, x, use_reentrant=False)
        return m.head(checkpoint(m.block, x, use_reentrant=False).mean(1))

    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4))
    return Model(forward, block=block, head=head(4))


@entry("traced part", (4,))
def traced():
    part = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    # Tracing is for one dtype, which the tests change.
    part = torch.jit.trace(part, torch.randn(2, 4), check_trace=False)
    return Model(
        lambda m, x: m.head(torch.tanh(m.part(m.fc(x)))),
        part=part,
        fc=nn.Linear(4, 4),
        head=head(4),
    )


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(matrix(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)) * self.scale


@entry("scripted part", (4,))
def scripted():
    return nn.Sequential(nn.Linear(4, 4), torch.jit.script(Scripted()), head(4))


@entry("second derivatives", (4,))
def forces():
    """The gradient of an energy, as in a model of forces."""

    def forward(m, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            energy = m.energy(x).sum()
            (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return m.head(force + x)

    energy = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return Model(forward, energy=energy, head=head(4))


@entry("vmap inside", (6, 4))
def vmapped():
    def forward(m, x):
        x = torch.tanh(torch.func.vmap(m.fc)(x))
        members = torch.func.vmap(lambda w: F.linear(x, w))(m.stacked)
        return m.head(torch.tanh(members).mean((0, 2)))

    return Model(forward, fc=nn.Linear(4, 4), stacked=matrix(3, 4, 4), head=head(4))


@entry("alias for some examples", (4,))
def sometimes():
    """Only examples after the first take the branch with the second reference to the weight."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 4), head(4)
            self.alias = [self.fc.weight]
            self.first: Tensor

        def forward(self, x):
            rows = [
                torch.tanh(F.linear(row, self.alias[0]) if row.sum() > 0 else self.fc(row) * 2)
                for row in x.split(1)
            ]
            return self.head(torch.cat(rows))

    return Sometimes()


def first_negative(n: int) -> Tensor:
    x = torch.randn(n, 4, dtype=torch.float64).abs()
    x[0] *= -1
    return x


MODELS["alias for some examples"] = MODELS["alias for some examples"]._replace(
    inputs=first_negative
)


# Whole architectures.


@entry("small GPT", tokens(7), tokens(7), each_token)
def small_gpt():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
            self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
            self.up, self.down = GPTConv1D(6, 12), GPTConv1D(12, 6)

        def forward(self, x):
            parts = self.qkv(self.norm1(x)).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    def forward(m, x):
        hidden = m.wte(x) + m.wpe(torch.arange(x.shape[1], device=x.device))
        for block in m.blocks:
            hidden = block(hidden)
        return F.linear(m.norm(hidden), m.wte.weight)

    return Model(
        forward,
        wte=nn.Embedding(VOCABULARY, 6),
        wpe=nn.Embedding(7, 6),
        blocks=nn.ModuleList([Block(), Block()]),
        norm=nn.LayerNorm(6),
    )


@entry("positions from a table", (5, 4))
def positions():
    def forward(m, x):
        x = x + m.table(torch.tensor([[0, 1, 2, 1, 3]]))
        x = torch.tanh(x) * m.table(torch.arange(4, -1, -1))
        return m.head(x.sum(1))

    return Model(forward, table=nn.Embedding(6, 4, padding_idx=1), head=head(4))


@entry("positions from a table, used in other ways as well", (5, 4))
def positions_elsewhere():
    def forward(m, x):
        rows = m.table(torch.arange(5)[None])
        return m.head(
            (torch.tanh(x + rows) * torch.sigmoid(rows)).sum(1) - m.table(torch.tensor([2]))
        )

    return Model(forward, table=nn.Embedding(6, 4), head=head(4))


@entry("positions from the table of the head", (5, 4))
def positions_tied():
    def forward(m, x):
        x = torch.tanh(x - m.table(torch.arange(5))) @ m.table.weight.t()
        return m.head(x.sum(1))

    return Model(forward, table=nn.Embedding(6, 4), head=head(6))


@entry("transformers GPT-2", tokens(5), tokens(5), each_token)
def gpt2():
    transformers = pytest.importorskip("transformers")

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=2, n_head=2, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config).eval()


@entry("transformers BERT", tokens(5))
def bert():
    transformers = pytest.importorskip("transformers")

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=CLASSES,
    )
    return transformers.BertForSequenceClassification(config).eval()


@entry("transformers Llama", tokens(5), tokens(5), each_token)
def llama():
    transformers = pytest.importorskip("transformers")

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


@entry("torchvision ResNet-18", (3, 32, 32))
def resnet():
    return torchvision.models.resnet18(num_classes=CLASSES, norm_layer=lambda c: nn.GroupNorm(4, c))


@entry("torchvision MobileNetV3", (3, 32, 32))
def mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=CLASSES, width_mult=0.3).eval()


@entry("torchvision ConvNeXt", (3, 32, 32))
def convnext():
    block = torchvision.models.convnext.CNBlockConfig
    settings = [block(8, 16, 1), block(16, 24, 1), block(24, None, 1)]
    return torchvision.models.ConvNeXt(settings, num_classes=CLASSES, layer_scale=0.5).eval()


@entry("torchvision ViT", (3, 16, 16))
def vit():
    model = torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 24, num_classes=CLASSES).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


@entry("torchvision Swin", (3, 16, 16))
def swin():
    return torchvision.models.SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=CLASSES
    ).eval()
