"""Models, optimisers and the plain loop that trains them, with a tape or without."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import memtools

N, CLASSES = 11, 3


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Net(nn.Module):
    """A forward function over its parts."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def mlp(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, CLASSES))


def relu():
    layers = [nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def cnn():
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES))


def batch_norm(momentum: float | None = 0.3):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3, momentum=momentum),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5, momentum=momentum),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )


def averaging():
    return batch_norm(momentum=None)


def partly_in_eval_mode():
    model = batch_norm()
    model[1].eval()
    return model


def dropout():
    layers = [nn.Dropout(0.2), nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


def noise():
    return memtools.models.MLP((4,), CLASSES, width=6, input_noise=0.3, hidden_noise=0.1)


def attention():
    def forward(m, x):
        z = m.norm(x)
        z = x + m.attention(z, z, z, need_weights=False)[0]
        return m.head(m.last(z).mean(1))

    return Net(
        forward,
        norm=nn.LayerNorm(4),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        last=nn.LayerNorm(4),
        head=nn.Linear(4, CLASSES),
    )


class Tied(nn.Module):
    """Two layers on one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(4, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(F.linear(torch.tanh(self.first(x)), self.second.weight.T)))


def twice_the_same_norm():
    def forward(m, x):
        return m.head(m.norm(torch.tanh(m.norm(m.first(x)))))

    return Net(forward, first=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), head=nn.Linear(5, CLASSES))


def frozen():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def sometimes_unused():
    def forward(m, x):
        z = torch.tanh(m.first(x))
        # Batches of an even size go without this part.
        return m.head(z + m.extra(z) if not m.training or len(x) % 2 else z)

    return Net(forward, first=nn.Linear(4, 6), extra=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "relu": (relu, (4,)),
    "cnn": (cnn, (1, 6, 6)),
    "batch_norm": (batch_norm, (1, 6, 6)),
    "averaging": (averaging, (1, 6, 6)),
    "partly_in_eval_mode": (partly_in_eval_mode, (1, 6, 6)),
    "twice_the_same_norm": (twice_the_same_norm, (4,)),
    "dropout": (dropout, (4,)),
    "noise": (noise, (4,)),
    "attention": (attention, (5, 4)),
    "tied": (Tied, (4,)),
    "frozen": (frozen, (4,)),
    "sometimes_unused": (sometimes_unused, (4,)),
}


class ClippedSGD(Optimizer):
    """SGD over gradients whose common norm is at most ``most``."""

    def __init__(self, params, lr, most):
        super().__init__(params, {"lr": lr, "most": most})

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        owned = [(p, group) for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.square().sum() for p, _ in owned]).sum().sqrt()
        for p, group in owned:
            p -= group["lr"] * (group["most"] / norm).clamp(max=1) * p.grad


def clipped_sgd(weights, gradients, state, settings):
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    new = dict(weights)
    for name, g in gradients.items():
        o = settings[name]
        new[name] = weights[name] - o["lr"] * (o["most"] / norm).clamp(max=1) * g
    return new, state


class SmoothLion(Optimizer):
    """Lion with a tangent in place of the sign."""

    def __init__(self, params, lr, betas, slope):
        super().__init__(params, {"lr": lr, "betas": betas, "slope": slope})

    @torch.no_grad()
    def step(self, closure=None) -> Any:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].get("exp_avg", torch.zeros_like(p))
                p -= group["lr"] * torch.tanh(group["slope"] * (beta1 * m + (1 - beta1) * p.grad))
                self.state[p]["exp_avg"] = beta2 * m + (1 - beta2) * p.grad


def smooth_lion(weights, gradients, state, settings):
    new, moments = dict(weights), {}
    for name, g in gradients.items():
        o = settings[name]
        beta1, beta2 = o["betas"]
        m = state["exp_avg"][name] if state else torch.zeros_like(g)
        step = torch.tanh(o["slope"] * (beta1 * m + (1 - beta1) * g))
        new[name], moments[name] = weights[name] - o["lr"] * step, beta2 * m + (1 - beta2) * g
    return new, {"exp_avg": moments}


def groups(kind, **options):
    """Weights and biases apart, with options of their own."""

    def make(parameters):
        parameters = list(parameters)
        own = {"params": [p for p in parameters if p.ndim == 1], "lr": 0.03, "weight_decay": 0.2}
        return kind([{"params": [p for p in parameters if p.ndim > 1]}, own], **options)

    return make


def of(kind, **options):
    return lambda parameters: kind(parameters, **options)


def rate_in_a_tensor(parameters):
    return SGD(parameters, lr=torch.tensor(0.3, dtype=torch.float64))


def without_the_first(parameters):
    return SGD(list(parameters)[1:], lr=0.3, momentum=0.5)


def decaying(optimizer):
    return StepLR(optimizer, 2, 0.5)


def one_cycle(optimizer):
    """Changes the learning rate and the momentum (or the first beta) after every step."""
    return OneCycleLR(optimizer, max_lr=0.3, total_steps=20)


OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], Callable[[Optimizer], Any] | None]] = {
    "sgd": (of(SGD, lr=0.3), None),
    "momentum": (of(SGD, lr=0.2, momentum=0.8), None),
    "nesterov": (of(SGD, lr=0.2, momentum=0.8, nesterov=True), None),
    "weight decay": (of(SGD, lr=0.3, weight_decay=0.1), None),
    "dampening": (of(SGD, lr=0.3, momentum=0.8, dampening=0.4, weight_decay=0.05), None),
    "all of SGD": (of(SGD, lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1), decaying),
    "maximize": (of(SGD, lr=0.1, momentum=0.5, weight_decay=0.1, maximize=True), None),
    "groups": (groups(SGD, lr=0.3, momentum=0.7), None),
    "schedule": (of(SGD, lr=0.3), decaying),
    "cycle": (of(SGD, lr=0.3, momentum=0.7), one_cycle),
    "rate in a tensor": (rate_in_a_tensor, decaying),
    "without the first": (without_the_first, None),
    "foreach": (of(SGD, lr=0.2, momentum=0.8, foreach=True), None),
    "adam": (of(Adam, lr=0.05), None),
    "adam, all": (of(Adam, lr=0.05, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1), decaying),
    "amsgrad": (of(Adam, lr=0.05, betas=(0.5, 0.6), amsgrad=True, eps=1e-3), None),
    "adam, maximize": (of(Adam, lr=0.05, maximize=True, weight_decay=0.1), None),
    "adam, groups": (groups(Adam, lr=0.05), one_cycle),
    "adam, decoupled": (
        of(Adam, lr=0.05, weight_decay=0.5, decoupled_weight_decay=True),
        None,
    ),
    "adam, fused": (of(Adam, lr=0.05, fused=True), None),
    "adamw": (of(AdamW, lr=0.05, weight_decay=0.3), None),
    "adamw, all": (
        of(AdamW, lr=0.05, weight_decay=0.3, amsgrad=True, betas=(0.7, 0.9), maximize=True),
        decaying,
    ),
    "clipped": (of(ClippedSGD, lr=0.5, most=0.4), decaying),
    "lion": (of(SmoothLion, lr=0.1, betas=(0.9, 0.8), slope=5.0), None),
}
OWN_UPDATES = {"clipped": clipped_sgd, "lion": smooth_lion}


def batches(updates=8, size=4, n=N):
    """Epochs in orders of their own: the last batch of each is smaller, and the last example is
    in none of them.
    """
    generator = torch.Generator().manual_seed(3)
    found = []
    while len(found) < updates:
        found += torch.randperm(n - 1, generator=generator).split(size)
    return found[:updates]


@dataclass
class Case:
    """A training to be: everything that decides its weights.

    Attributes:
        model: Its initial weights.
        x: Inputs.
        y: Targets.
        batches: Indices of each update.
        optimizer: Makes the optimiser from parameters.
        scheduler: Makes the schedule from the optimiser, stepped after each update.
        update: The own update function that the optimiser goes with.
        loss_fn: Losses of examples; ``None`` is the cross-entropy.
        reduction: How they join.
        keep_gradients: Whether gradients are set to zero and not to ``None`` between updates.
        warm_up: Updates before the tape begins.
    """

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    batches: list[torch.Tensor] = field(default_factory=batches)
    optimizer: Callable[..., Optimizer] = OPTIMIZERS["momentum"][0]
    scheduler: Callable[[Optimizer], Any] | None = None
    update: Callable[..., Any] | None = None
    loss_fn: Callable[..., torch.Tensor] | None = None
    reduction: str = "mean"
    keep_gradients: bool = False
    warm_up: int = 0


def build(model="mlp", optimizer="momentum", **changes):
    """A case in float64 by the names of its model and its optimiser."""
    make, shape = MODELS[model]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double()
    x = draw(N, *shape)
    y = torch.arange(N).remainder(CLASSES)
    make_optimizer, scheduler = OPTIMIZERS[optimizer]
    settings = {
        "optimizer": make_optimizer,
        "scheduler": scheduler,
        "update": OWN_UPDATES.get(optimizer),
    }
    return Case(module, x, y, **(settings | changes))


@dataclass
class Trained:
    """What a training left: the tape, and all that it takes to do it over."""

    tape: Any
    model: nn.Module
    initial: nn.Module
    state: dict[str, dict[str, torch.Tensor]]
    settings: list[dict[str, dict[str, Any]]]
    random_states: list[torch.Tensor]
    modes: list[list[bool]]
    weights: list[dict[str, torch.Tensor]]
    losses: torch.Tensor
    kind: str = ""


def train(case, *, x=None, tape=None, losses=False, between=None, seed=4):
    """The plain loop, from a copy of the model; the random state is put back.

    Args:
        case: What to train.
        x: Inputs in the place of those of the case.
        tape: Options of a tape that records it; ``None`` is without.
        losses: Whether to go through the data in eval mode after each update.
        between: Called with model, optimiser and the number of the update before its forward pass.
        seed: Of dropout.
    """
    model, x = copy.deepcopy(case.model), case.x if x is None else x
    optimizer = case.optimizer(list(model.parameters()))
    schedule = case.scheduler(optimizer) if case.scheduler else None
    found = Trained(
        None, model, model, {}, [], [], [], [], torch.empty(0), type(optimizer).__name__
    )
    curve = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for number, batch in enumerate(case.batches, 1 - case.warm_up):
            if number == 1:
                found.initial = copy.deepcopy(model)
                found.state = state_of(model, optimizer)
                if tape is not None:
                    options = {k: v for k in SETTINGS if (v := getattr(case, k)) != DEFAULTS[k]}
                    found.tape = memtools.TrainingTape(model, optimizer, **(options | tape))
            if number >= 1 and losses:
                curve.append(mean_loss(model, x, case))
            if between is not None:
                between(model, optimizer, number)
            found.random_states.append(torch.get_rng_state())
            found.settings.append(settings_of(model, optimizer))
            found.modes.append([module.training for module in model.modules()])
            found.weights.append(weights_of(model))
            optimizer.zero_grad(set_to_none=not case.keep_gradients)
            batch_loss(case, model(x[batch]), case.y[batch]).backward()
            if found.tape is not None:
                found.tape.record(batch)
            optimizer.step()
            if schedule:
                schedule.step()
        found.weights.append(weights_of(model))
        if losses:
            found.losses = torch.stack([*curve, mean_loss(model, x, case)])
    for name in ("settings", "random_states", "modes", "weights"):
        setattr(found, name, getattr(found, name)[case.warm_up :])
    return found


def statistics_stay_from(update):
    """For ``between``: BatchNorm is in eval mode from an update on."""

    def change(model, optimizer, number):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train(number < update)

    return change


SETTINGS = ("loss_fn", "reduction", "update")
DEFAULTS = {"loss_fn": None, "reduction": "mean", "update": None}


def batch_loss(case, logits, y):
    losses = (case.loss_fn or cross_entropy)(logits, y)
    return losses.mean() if case.reduction == "mean" else losses.sum()


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


@torch.no_grad()
def mean_loss(model, x, case):
    with in_eval_mode(model):
        return (case.loss_fn or cross_entropy)(model(x), case.y).mean()


@contextlib.contextmanager
def in_eval_mode(model):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    yield
    for module, mode in modes.items():
        module.training = mode


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def by_name(model, tensors):
    return {name: tensors[p] for name, p in model.named_parameters() if p in tensors}


def settings_of(model, optimizer):
    """Options of each parameter that is trained, by name."""
    options = {}
    for group in optimizer.param_groups:
        plain = {k: float(v) if k == "lr" else v for k, v in group.items() if k != "params"}
        options |= {p: plain for p in group["params"] if p.requires_grad}
    return by_name(model, options)


def state_of(model, optimizer):
    """What the optimiser keeps: key -> name of a parameter -> a copy."""
    keys = {key for kept in optimizer.state.values() for key in kept}
    return {
        key: by_name(
            model, {p: kept[key].clone() for p, kept in optimizer.state.items() if key in kept}
        )
        for key in keys
    }
