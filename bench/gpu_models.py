"""Whole models on a GPU: what memtools costs beside the training step that it is called in."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from bench.device_timing import Call
from bench.peers import PEERS
from bench.problems import Problem as Peered
from memtools.models import SmallAlexNet

LossFunction = Callable[[Tensor, Tensor], Tensor]
COMPARED = ("opacus ghost", "backpack", "fastdp")
"""Tools that know a way without per-example gradients."""


class Training(NamedTuple):
    """A model with a batch; the loss is the mean of ``losses(logits, targets)``."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    losses: LossFunction | None


class GPT(nn.Module):
    """A decoder of the size of GPT-2 small, with its tied head."""

    def __init__(
        self, vocabulary: int = 50_257, length: int = 1024, width: int = 768, depth: int = 12
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, max(1, width // 64)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for module in (self.tokens, self.places):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.places(place)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.before(x)).unflatten(2, (3, self.heads, -1)).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


def _next_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the positions of each sequence."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def trainings(device: torch.device, *, small: bool) -> Iterator[Training]:
    torch.manual_seed(0)
    n, size = (2, 32) if small else (64, 224)
    images = torch.randn(n, 3, size, size, device=device)
    labels = torch.randint(1000, (n,), device=device)
    resnet = torchvision.models.resnet18().to(device).eval()
    yield Training("resnet18", resnet, images, labels, None)
    if not small:
        yield Training("vit_b_16", torchvision.models.vit_b_16().to(device), images, labels, None)
    gpt = GPT(50, 8, 64, 2) if small else GPT()
    length = gpt.places.num_embeddings
    tokens = torch.randint(gpt.tokens.num_embeddings, (n, length + 1), device=device)
    gpt = gpt.to(device, torch.float32 if small else torch.bfloat16)
    yield Training("GPT-2 small", gpt, tokens[:, :-1], tokens[:, 1:], _next_token_losses)


def calls(training: Training) -> dict[str, Call]:
    """A plain backward pass, and what memtools and other tools ask for norms and metrics."""
    _, model, inputs, targets, losses = training
    each = losses or partial(F.cross_entropy, reduction="none")

    def plain() -> None:
        model.zero_grad()
        each(model(inputs), targets).mean().backward()

    def watched() -> None:
        model.zero_grad()
        embedding = None if inputs.is_floating_point() else "tokens"
        with memtools.watch(model, embedding=embedding) as watch:
            each(model(inputs), targets).mean().backward()
            watch.parameter_gradient_norms()

    def scored() -> None:
        model.zero_grad()
        logits = model(inputs)
        each(logits, targets).mean().backward()
        memtools.scores.el2n(logits, targets)

    found: dict[str, Call] = {
        "plain backward pass": plain,
        "parameter_gradient_norms": lambda: memtools.parameter_gradient_norms(
            model, inputs, targets, loss_fn=losses
        ),
        "watch": watched,
    }
    if losses is None:
        found["EL2N in a step"] = scored
        peered = Peered(training.name, model, inputs, targets)
        found |= {name: partial(_prepared, name, peered) for name in COMPARED}
    return found


_PREPARED: dict[tuple[str, str], Call] = {}


def _prepared(name: str, problem: Peered) -> Tensor:
    """A tool's computation; it is prepared at the first call."""
    key = name, problem.name
    if key not in _PREPARED:
        _PREPARED[key] = PEERS[name](problem)
    return _PREPARED[key]()  # type: ignore[return-value]


def searches(device: torch.device, *, small: bool) -> dict[str, Call]:
    """Critical samples among CIFAR-shaped images: ours, and a batched search in eager PyTorch."""
    torch.manual_seed(0)
    n, steps, radius = (8, 3, 0.1) if small else (10_000, 50, 0.03)
    model = SmallAlexNet((3, 32, 32), 10).to(device).eval().requires_grad_(False)
    images = torch.rand(n, 3, 32, 32, device=device)

    def eager() -> Tensor:
        found = [_eager_search(model, part, radius, steps) for part in images.split(1000)]
        return torch.cat(found)

    search = partial(memtools.find_critical, model, images, radius=radius, max_steps=steps)
    return {
        "batched search in eager PyTorch": eager,
        "find_critical": search,
        "find_critical, auto": partial(search, max_steps=None, method="auto"),
    }


def _eager_search(model: nn.Module, start: Tensor, radius: float, steps: int) -> Tensor:
    low, high, point = start - radius, start + radius, start
    with torch.no_grad():
        label = model(start).argmax(1)
    is_critical = torch.zeros_like(label, dtype=torch.bool)
    for _ in range(steps):
        x = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label, reduction="sum"), x)
        noise = torch.randn_like(start)
        point = point + radius * (0.25 * gradient.sign() + 0.2 * noise) / 0.3
        point = torch.minimum(torch.maximum(point, low), high)
        with torch.no_grad():
            is_critical |= model(point).argmax(1) != label
    return is_critical
