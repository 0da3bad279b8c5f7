"""The models in which critical samples are searched, trained from fixed seeds on Fashion-MNIST."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtools import data
from memtools.data import Tensors
from memtools.files import replace_atomically

CACHE = Path(__file__).parent.parent / ".benchmarks" / "critical"
"""Trained weights and reference results; git ignores it, and whatever is missing is made anew."""
CLASSES = 10
EXAMPLES = 1000
MEMORISED = 5000


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a way past them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.past = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.past(x)).relu()


class Normalise(nn.Module):
    """Pixels in [0, 1] to mean 0 and standard deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.286) / 0.353


def _mlp(activation: Callable[[], nn.Module] = nn.ReLU, width: int = 512) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, CLASSES),
    )


def _cnn() -> nn.Module:
    """1.2 million multiplications an image."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, CLASSES),
    )


def _tanh_mlp() -> nn.Module:
    return _mlp(nn.Tanh, 256)


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8, 16, 1),
        Residual(16, 32, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def _normalising_cnn() -> nn.Module:
    """Strides in place of pooling, GELU in place of ReLU."""
    return nn.Sequential(
        Normalise(),
        nn.Conv2d(1, 12, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(24 * 49, 64),
        nn.GELU(),
        nn.Linear(64, CLASSES),
    )


class Recipe(NamedTuple):
    """How a model comes about; Adam with a one-cycle schedule does the rest."""

    build: Callable[[], nn.Module]
    epochs: int
    rate: float = 2e-3
    random_labels: bool = False
    """5,000 images whose labels are drawn at random, in place of the 60,000 with their own."""


TUNED = {
    "mlp": Recipe(_mlp, epochs=8),
    "cnn": Recipe(_cnn, epochs=4),
    "memorised": Recipe(_mlp, epochs=200, rate=5e-4, random_labels=True),
}
HELD_OUT = {
    "resnet": Recipe(_resnet, epochs=3, rate=1e-2),
    "tanh": Recipe(_tanh_mlp, epochs=6),
    "normalising": Recipe(_normalising_cnn, epochs=4),
}
RECIPES = TUNED | HELD_OUT


def images(data_dir: Path) -> Tensor:
    """1,000 test images, pixels in [0, 1]."""
    split = data.load("fashion-mnist", data_dir=data_dir, train_size=1, validation_size=EXAMPLES)
    return data.in_memory(split.validation).inputs


def trained(name: str, data_dir: Path) -> tuple[nn.Module, dict[str, float]]:
    """A model of ``RECIPES`` in eval mode, out of the cache or trained now, and its accuracies."""
    recipe = RECIPES[name]
    train, test = _data(recipe, data_dir)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = recipe.build()
        key = hashlib.sha256(f"{recipe[1:]} {model} {torch.__version__}".encode()).hexdigest()
        kept = CACHE / f"{name}-{key[:12]}.pt"
        if kept.exists():
            model.load_state_dict(torch.load(kept, weights_only=True))
        else:
            _fit(model, train, recipe)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replace_atomically(kept) as path:
                torch.save(model.state_dict(), path)
    model.eval()
    return model, {
        "train accuracy": _accuracy(model, train),
        "test accuracy": _accuracy(model, test),
    }


def _data(recipe: Recipe, data_dir: Path) -> tuple[Tensors, Tensors]:
    size = MEMORISED if recipe.random_labels else None
    split = data.load("fashion-mnist", data_dir=data_dir, train_size=size)
    train, test = data.in_memory(split.train), data.in_memory(split.validation)
    if recipe.random_labels:
        train = Tensors(train.inputs, data.random_labels(train, num_classes=CLASSES).targets)
    return train, test


def _fit(model: nn.Module, train: Tensors, recipe: Recipe, batch: int = 128) -> None:
    updates = recipe.epochs * (-(-len(train) // batch))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, updates)
    model.train()
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(train)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(train.inputs[chosen]), train.targets[chosen]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _accuracy(model: nn.Module, examples: Tensors) -> float:
    right = [
        model(x).argmax(1) == y
        for x, y in zip(examples.inputs.split(1000), examples.targets.split(1000), strict=True)
    ]
    return float(torch.cat(right).float().mean())
