"""Models with a batch each, on which tools for per-example gradient norms are timed."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from memtools.models import MLP, SmallAlexNet

CLASSES = 10


class Problem(NamedTuple):
    """A model and a batch; the loss is the cross-entropy of the model's logits."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor


class Mean(nn.Module):
    """Mean over some dimensions."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def _calibrated(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model in eval mode, with BatchNorm statistics of some batches like ``inputs``."""
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn_like(inputs) * 1.5 + 0.2)
    return model.eval()


def _mlp() -> tuple[nn.Module, Tensor]:
    return MLP((1, 28, 28), CLASSES, width=512), torch.randn(256, 1, 28, 28)


def _alexnet() -> tuple[nn.Module, Tensor]:
    inputs = torch.randn(64, 3, 32, 32)
    return _calibrated(SmallAlexNet((3, 32, 32), CLASSES), inputs), inputs


def _resnet18_groupnorm() -> tuple[nn.Module, Tensor]:
    model = torchvision.models.resnet18(
        num_classes=CLASSES, norm_layer=lambda channels: nn.GroupNorm(8, channels)
    )
    return model, torch.randn(16, 3, 32, 32)


def _resnet18_batchnorm() -> tuple[nn.Module, Tensor]:
    inputs = torch.randn(16, 3, 32, 32)
    return _calibrated(torchvision.models.resnet18(num_classes=CLASSES), inputs), inputs


def _encoder(feedforward: int) -> tuple[nn.Module, Tensor]:
    """In train mode, where the layers do not take their fast path for inference."""
    layers = [
        nn.TransformerEncoderLayer(128, 4, feedforward, dropout=0.0, batch_first=True)
        for _ in range(2)
    ]
    return nn.Sequential(*layers, Mean(1), nn.Linear(128, CLASSES)), torch.randn(32, 64, 128)


def _linear_t2048() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), Mean(1), nn.Linear(64, CLASSES)
    )
    return model, torch.randn(8, 2048, 64)


def _linear_4d() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), Mean(1, 2), nn.Linear(64, CLASSES)
    )
    return model, torch.randn(32, 16, 16, 64)


def _depthwise() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for size in (3, 7, 3):
        layers += [
            nn.Conv2d(64, 64, size, padding=size // 2, groups=64),
            nn.Conv2d(64, 64, 1),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(64, CLASSES)), torch.randn(16, 3, 32, 32)


def _grouped() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(64, 64, 3, padding=1, groups=4), nn.ReLU()]
    return nn.Sequential(*layers, Mean(2, 3), nn.Linear(64, CLASSES)), torch.randn(16, 3, 32, 32)


def _embedding_30k() -> tuple[nn.Module, Tensor]:
    """Tokens as skewed as words; a head whose weights let the embedding's gradient matter."""
    head = nn.Linear(128, CLASSES)
    nn.init.normal_(head.weight)
    model = nn.Sequential(nn.Embedding(30_000, 128), Mean(1), head)
    return model, (30_000 ** torch.rand(32, 64)).long()


def _problem(name: str, build: Callable[[], tuple[nn.Module, Tensor]]) -> Callable[[], Problem]:
    """The same weights and the same batch at every call; the global random state is kept."""

    def make() -> Problem:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = build()
            return Problem(name, model, inputs, torch.randint(CLASSES, (len(inputs),)))

    return make


MAIN = (
    "mlp", "alexnet", "resnet18-groupnorm", "resnet18-batchnorm", "encoder", "encoder-wide",
)  # fmt: skip

PROBLEMS: dict[str, Callable[[], Problem]] = {
    name: _problem(name, build)
    for name, build in {
        "mlp": _mlp,
        "alexnet": _alexnet,
        "resnet18-groupnorm": _resnet18_groupnorm,
        "resnet18-batchnorm": _resnet18_batchnorm,
        "encoder": partial(_encoder, 512),
        "encoder-wide": partial(_encoder, 2048),  # PyTorch's default
        "linear-t2048": _linear_t2048,
        "linear-4d": _linear_4d,
        "depthwise": _depthwise,
        "grouped": _grouped,
        "embedding-30k": _embedding_30k,
    }.items()
}
