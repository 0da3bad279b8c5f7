"""What a search costs and finds, looked at from outside: passes counted, points checked again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 2e-7
"""What a point in single precision may lie outside its box; pixels are at most 1."""


@dataclass
class Passes:
    """Passes of single examples through a model."""

    forwards: int = 0
    backwards: int = 0

    @property
    def total(self) -> int:
        return self.forwards + self.backwards


class Whole(nn.Module):
    """A model that is called as a whole: ART calls the layers of a sequence one by one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Count the rows of each call of the model, and of each gradient that comes back to it."""
    passes = Passes()

    def came_back(gradient: Tensor) -> None:
        passes.backwards += _rows(gradient)

    def called(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        passes.forwards += _rows(args[0])
        if output.requires_grad:
            output.register_hook(came_back)

    handle = model.register_forward_hook(called)
    try:
        yield passes
    finally:
        handle.remove()


def _rows(tensor: Tensor) -> int:
    """Rows of a tensor, times the entries of the dimensions that ``vmap`` hides."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    rows = len(tensor)
    while functorch.is_functorch_wrapped_tensor(tensor):
        inner = functorch.get_unwrapped(tensor)
        rows, tensor = rows * inner.numel() // tensor.numel(), inner
    return rows


@torch.no_grad()
def flips(model: nn.Module, inputs: Tensor, points: Tensor, radius: float) -> Tensor:
    """Which points lie in their boxes and in [0, 1] and have another class in a plain pass."""
    inside = ((points - inputs).abs() <= radius + ROUNDING) & (points >= 0) & (points <= 1)
    other = model(points).argmax(1) != model(inputs).argmax(1)
    return inside.flatten(1).all(1) & other
