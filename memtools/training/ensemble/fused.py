"""The engine for fully connected networks: batched products, and no autograd."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memtools.models import MLP
from memtools.training.ensemble.flat import Slots
from memtools.training.ensemble.member import Member, Settings
from memtools.training.ensemble.noise import is_noise
from memtools.training.ensemble.probe import Probe
from memtools.training.ensemble.stacked import Stacked
from memtools.training.ensemble.table import Table

__all__ = ["Fused", "fused_obstacle"]


@dataclass(frozen=True)
class _Layer:
    kind: str
    """One of linear, relu, multiply, add."""
    weight: str = ""
    bias: str = ""


def fused_obstacle(model: nn.Module, inputs: Tensor) -> str | None:
    """Why a model cannot be trained by this engine, ``None`` if it can."""
    layers = _flattened(model)
    if isinstance(layers, str):
        return layers
    if not inputs.is_floating_point():
        return f"inputs of dtype {inputs.dtype}"
    flat = inputs.ndim == 2
    for name, layer in layers:
        if type(layer) is nn.Flatten:
            flat = True
        elif type(layer) is nn.Linear and not flat:
            return f"{name} (Linear on inputs that are not flattened)"
    if not layers or type(layers[-1][1]) is not nn.Linear:
        return f"{type(model).__name__} does not end with a Linear"
    return None


def _flattened(model: nn.Module) -> list[tuple[str, nn.Module]] | str:
    """The layers in the order in which they are called, or the name of one that is not known."""
    if type(model) is MLP:
        root: list[tuple[str, nn.Module]] = [("layers", model.layers)]
    elif type(model) is nn.Sequential:
        root = [("", model)]
    else:
        return f"{type(model).__name__} is neither nn.Sequential nor memtools.models.MLP"
    layers = []
    while root:
        name, module = root.pop(0)
        if type(module) is nn.Sequential:
            prefix = f"{name}." if name else ""
            # Not named_children(), which leaves out a layer that comes a second time.
            root = [(prefix + child, m) for child, m in module._modules.items() if m] + root
            continue
        if type(module) is nn.Flatten:
            known = (module.start_dim, module.end_dim) == (1, -1)
        else:
            known = is_noise(module) or type(module) in (nn.Linear, nn.ReLU, nn.Identity)
        if not known:
            return f"{name} ({type(module).__name__})"
        layers.append((name, module))
    return layers


class Fused(Stacked):
    """A stack of fully connected networks with ReLU, dropout and noise, under cross-entropy."""

    def __init__(
        self,
        members: Sequence[Member],
        places: Sequence[int],
        table: Table,
        settings: Settings,
        probe: Probe,
        slots: Sequence[Slots | None],
    ) -> None:
        found = _flattened(members[0].model)
        assert not isinstance(found, str), found
        linears = [f"{name}.weight" for name, layer in found if type(layer) is nn.Linear]
        super().__init__(
            members,
            places,
            table,
            settings,
            slots=slots,
            trainable=probe.trainable,
            draws=probe.draws,
            # The fastest layout for the forward pass. The backward pass of later layers prefers
            # the other one, and that of the first layer does not need its weights.
            transposed=frozenset(linears[:1]),
        )
        self._layers = [
            layer for name, module in found if (layer := _described(name, module)) is not None
        ]
        self._values = self.weights.views | self.weights.others
        moved = [
            place
            for place, layer in enumerate(self._layers)
            if layer.weight in self.gradients or layer.bias in self.gradients
        ]
        self._first = moved[0]
        self._buffers: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def step(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Take one update."""
        x = self.batch(rows).flatten(2)
        noise = iter(self.noise.draw(rows.shape[1]))
        saved = []
        for place, layer in enumerate(self._layers):
            if layer.kind == "linear":
                saved.append(x)
                x = self._linear(layer, x, self._buffer(place, x, self._values[layer.weight]))
            elif layer.kind == "relu":
                x = x.relu_()
                saved.append(x)
            else:
                # In place, which ReLU's derivative survives: what dropout zeroes has none.
                given = next(noise).view_as(x)
                x = x.mul_(given) if layer.kind == "multiply" else given.add_(x)
                saved.append(given)
        loss = self._loss(x, targets)
        self._backward(x, saved)
        self.update.step()
        return loss

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean losses; the logits become their own gradient."""
        n = targets.shape[1]
        places = targets.unsqueeze(2)
        logits.sub_(torch.logsumexp(logits, 2, keepdim=True))
        loss = logits.gather(2, places).sum((1, 2)).mul_(-1 / n)
        logits.exp_()
        logits.scatter_add_(2, places, logits.new_full((1, 1, 1), -1).expand(places.shape))
        logits.mul_(1 / n)
        return loss

    def _backward(self, gradient: Tensor, saved: list[Tensor]) -> None:
        for place in range(len(self._layers) - 1, self._first - 1, -1):
            layer = self._layers[place]
            if layer.kind == "relu":
                torch.ops.aten.threshold_backward.grad_input(
                    gradient, saved[place], 0, grad_input=gradient
                )
            elif layer.kind == "multiply":
                gradient.mul_(saved[place])
            elif layer.kind == "linear":
                x = saved[place]
                if layer.bias in self.gradients:
                    torch.sum(gradient, 1, out=self.gradients[layer.bias])
                if layer.weight in self.gradients:
                    out = self.gradients[layer.weight]
                    if out.is_contiguous():
                        torch.bmm(gradient.mT, x, out=out)
                    else:
                        torch.bmm(x.mT, gradient, out=out.mT)
                if place > self._first:
                    weight = self._values[layer.weight]
                    gradient = torch.bmm(gradient, weight, out=self._scratch(place, x))

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits in eval mode."""
        x = inputs.flatten(2)
        for layer in self._layers:
            if layer.kind == "linear":
                x = self._linear(layer, x)
            elif layer.kind == "relu":
                x = x.relu()
        return x

    def _linear(self, layer: _Layer, x: Tensor, out: Tensor | None = None) -> Tensor:
        weight = self._values[layer.weight].mT
        if not layer.bias:
            return torch.bmm(x, weight, out=out)
        return torch.baddbmm(self._values[layer.bias].unsqueeze(1), x, weight, out=out)

    def _buffer(self, place: int, x: Tensor, weight: Tensor) -> Tensor:
        """Memory for the output of a layer."""
        key = (place, x.shape[1])
        if key not in self._buffers:
            self._buffers[key] = x.new_empty((*x.shape[:2], weight.shape[1]))
        return self._buffers[key]

    def _scratch(self, place: int, x: Tensor) -> Tensor:
        """Memory for the gradient of what goes into a layer."""
        key = (-place, x.shape[1])
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(x)
        return self._buffers[key]


def _described(name: str, module: nn.Module) -> _Layer | None:
    if type(module) is nn.Linear:
        bias = "" if module.bias is None else f"{name}.bias"
        return _Layer("linear", f"{name}.weight", bias)
    if type(module) is nn.ReLU:
        return _Layer("relu")
    if is_noise(module):
        return _Layer("multiply" if isinstance(module, nn.Dropout) else "add")
    return None  # Identity, and Flatten of what is flat already
