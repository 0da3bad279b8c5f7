"""Models and data for the tests of ensembles, and what is obviously right."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from memtools import seeds
from memtools.data import Tensors
from memtools.models import MLP, GaussianNoise
from memtools.training import Member, Trainer

SHAPE, CLASSES = (2, 3), 3
NOISY: dict[str, Any] = {
    "dropout": 0.3,
    "input_dropout": 0.1,
    "input_noise": 0.2,
    "hidden_noise": 0.1,
}
ENGINES = ("loop", "vmap", "fused", "auto")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "adamw": {"optimizer": "adamw", "betas": (0.8, 0.95), "eps": 1e-6},
}


def data(n=50, seed=0, shape=SHAPE):
    draw = torch.Generator().manual_seed(seed)
    return Tensors(
        torch.randn(n, *shape, generator=draw), torch.randint(CLASSES, (n,), generator=draw)
    )


def mlp(seed=0, **settings):
    with seeds.seeded("weights", seed):
        return MLP(SHAPE, CLASSES, **{"width": 8} | settings)


def weights_of(member):
    model = member.model if isinstance(member, Member) else member
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def torch_optimizer(member, options):
    own = {"lr": member.learning_rate, "weight_decay": member.weight_decay}
    options = dict(options)
    kind = AdamW if options.pop("optimizer", "sgd") == "adamw" else SGD
    return lambda weights: kind(weights, **own, **options)


def trained_alone(members, options, validation=None, **settings: Any):
    """Copies of the members, trained by a ``Trainer`` each, and their results."""
    members = deepcopy(members)
    results = []
    for member in members:
        own: dict[str, Any] = {"precision": "float64", "device": "cpu", **settings}
        trainer = Trainer(member.model, torch_optimizer(member, options), seed=member.seed, **own)
        results.append(trainer.fit(member.train, validation))
    return members, results


def trained_by_stream(member, options, *, epochs, batch_size, updates_per_epoch):
    """A copy trained on a stream of permutations, written without a line of memtools.training.

    Returns:
        The model, and of each epoch the mean loss of its batches and the accuracy after it.
    """
    model = deepcopy(member.model).double()
    inputs, targets = member.train.inputs.double(), member.train.targets
    optimizer = torch_optimizer(member, options)(model.parameters())
    n = len(inputs)
    size = min(batch_size, n)

    def examples():
        k = 1
        while True:
            draw = torch.Generator().manual_seed(seeds.derive_seed(member.seed, "pass", k))
            yield from torch.randperm(n, generator=draw).tolist()
            k += 1

    stream = examples()
    results = []
    with seeds.kept():
        for epoch in range(1, epochs + 1):
            torch.manual_seed(seeds.derive_seed(member.seed, "noise", epoch, 0))
            losses = []
            model.train()
            for _ in range(updates_per_epoch):
                batch = [next(stream) for _ in range(size)]
                loss = F.cross_entropy(model(inputs[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            model.eval()
            right = (model(inputs).argmax(1) == targets).double().mean().item()
            results.append((sum(losses) / len(losses), right))
    return model, results


class Attention(nn.Module):
    """Rows of an input attend to each other; weights that autograd reaches in many ways."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.query, self.key = nn.Linear(3, 4), nn.Linear(3, 4, bias=False)
        self.drop, self.noise = nn.Dropout(0.2), GaussianNoise(0.1)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(6, CLASSES)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("shift", torch.full((3,), 0.1))

    def forward(self, x):
        x = self.norm(x) + self.shift
        weights = self.drop((self.query(x) @ self.key(x).mT * self.scale).softmax(-1))
        # Transposed: dropout and noise have to see the layout that the numbers are drawn in.
        return self.head(F.gelu(self.noise((weights @ x).mT)).flatten(1))


class Convolutional(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().amax((2, 3)))


def made(kind, seed=0):
    with seeds.seeded("weights", seed):
        return kind()
