"""Small models of every kind that the metric functions meet, each with a batch for it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from memtools.models import MLP, SmallAlexNet, TinyMLP

N = 5
CLASSES = 3


class Case(NamedTuple):
    model: nn.Module
    inputs: Tensor
    targets: Tensor


class Raw(nn.Module):
    """Parameters of its own, one of them a scalar, and no module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(3, 4))
        self.head = nn.Parameter(torch.randn(4, CLASSES))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return torch.tanh(x[:, None] * self.positions).sum(1) @ self.head * self.scale


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Record(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return SimpleNamespace(logits=self.layers(x), hidden=None)


class Branching(nn.Module):
    """Control flow that depends on the values, which cannot be vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return torch.cat([self.layers(row if row.sum() > 0 else 2 * row) for row in x.split(1)])


class Cube(torch.autograd.Function):
    """A function of the old kind, which torch.func does not take."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, *grads):
        return 3 * ctx.saved_tensors[0] ** 2 * grads[0]


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(Cube.apply(self.first(x)))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
    )


def batch_norm() -> nn.Module:
    """In train mode but for its BatchNorm, as in fine-tuning."""
    norm = nn.BatchNorm2d(4)
    norm.load_state_dict(
        norm.state_dict() | {"running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5}
    )
    norm.eval()
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def in_place() -> nn.Module:
    """In place on the batch itself as well."""
    return nn.Sequential(
        nn.LeakyReLU(0.3, inplace=True),
        nn.Linear(4, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, CLASSES),
    )


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


def weight_norm() -> nn.Module:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def spectral_norm() -> nn.Module:
    """Writes into its buffers at each forward pass in train mode."""
    model = mlp()
    nn.utils.parametrizations.spectral_norm(model[0])
    return model


def hooked() -> nn.Module:
    model = mlp()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    model[2].register_full_backward_hook(lambda module, grad_in, grad_out: None)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "conv and GroupNorm": (group_norm, (2, 6, 6)),
    "conv and BatchNorm in eval": (batch_norm, (2, 6, 6)),
    "in-place ReLU": (in_place, (4,)),
    "raw parameters": (Raw, (4,)),
    "tied weights": (Tied, (4,)),
    "LSTM": (Recurrent, (7, 4)),
    "attention": (Attention, (7, 4)),
    "transformer": (Transformer, (7, 4)),
    "partly frozen": (frozen, (4,)),
    "weight_norm": (weight_norm, (4,)),
    "spectral_norm": (spectral_norm, (4,)),
    "record with logits": (Record, (4,)),
    "hooked": (hooked, (4,)),
    "data-dependent branch": (Branching, (4,)),
    "custom autograd function": (CustomFunction, (4,)),
    "memtools MLP": (lambda: MLP((1, 4, 4), CLASSES, width=8), (1, 4, 4)),
    "memtools TinyMLP": (lambda: TinyMLP((1, 16, 16), CLASSES), (1, 16, 16)),
    "memtools SmallAlexNet": (
        lambda: SmallAlexNet((1, 10, 10), CLASSES, width=8).eval(),
        (1, 10, 10),
    ),
}


def build(name: str, dtype: torch.dtype) -> Case:
    """The same model, weights and batch for the same name, but for rounding to ``dtype``."""
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().to(dtype)
        inputs = torch.randn(N, *shape, dtype=torch.float64).to(dtype)
    return Case(model, inputs, torch.tensor([0, 2, 1, 2, 0]))
