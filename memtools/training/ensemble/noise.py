"""Dropout and noise of every member from its own stream, as they come when it trains alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from memtools import seeds
from memtools.models import GaussianNoise

__all__ = ["Draw", "Noise", "NoiseModules", "is_noise"]


def is_noise(module: nn.Module) -> bool:
    """Whether the randomness of a module can be drawn for it."""
    return type(module) in (nn.Dropout, GaussianNoise)


class Draw(NamedTuple):
    """One call of a module that needs random numbers."""

    module: str
    multiplies: bool
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Given(nn.Module):
    """Stands in for dropout or noise, and takes the random numbers that it is given."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        given: Callable[["_Given", Tensor], Tensor | None],
    ) -> None:
        super().__init__()
        self.name, self.given = name, given
        self.multiplies = isinstance(module, nn.Dropout)
        self.inplace = isinstance(module, nn.Dropout) and module.inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = self.given(self, x)
        if noise is None:
            return x
        if self.inplace:
            return x.mul_(noise)
        return x * noise if self.multiplies else x + noise


class NoiseModules:
    """The random modules of a copy of a model, replaced by ones that are given their numbers.

    Args:
        model: Changed in place: a copy that nobody else uses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._queue: Iterator[Tensor] | None = None
        self._calls: list[Draw] = []
        found = {name: m for name, m in model.named_modules(remove_duplicate=False) if is_noise(m)}
        stand_ins: dict[int, nn.Module] = {}
        for name, module in found.items():
            stand_in = stand_ins.setdefault(id(module), _Given(name, module, self._give))
            model.set_submodule(name, stand_in)

    @contextmanager
    def recorded(self) -> Iterator[list[Draw]]:
        """Note what is called in a block, which runs without noise."""
        self._queue, self._calls = None, []
        yield self._calls

    def give(self, noise: Sequence[Tensor]) -> None:
        """Hand out these in the order of the calls to come."""
        self._queue = iter(noise)

    def _give(self, module: _Given, x: Tensor) -> Tensor | None:
        if self._queue is not None:
            return next(self._queue)
        # The layout that dropout and noise get from empty_like().
        stride = torch.empty_like(x).stride()
        self._calls.append(Draw(module.name, module.multiplies, tuple(x.shape), stride))
        return None


class Noise:
    """Draws what the members of a stack need for an update.

    The streams are those of the CPU there, so that the numbers are the ``Trainer``'s bit for bit;
    on another device each member has a generator of that device.

    Args:
        models: The members' own models.
        calls: What an update draws, by the size of its batch.
        device: Where.
        dtype: Of the activations.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        calls: dict[int, list[Draw]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._calls = calls
        self._device, self._dtype = device, dtype
        self._generators = [torch.Generator(device) for _ in models]
        self._strengths: dict[str, list[float]] = {}
        modules = [dict(m.named_modules(remove_duplicate=False)) for m in models]
        for draw in {draw for draws in calls.values() for draw in draws}:
            name = "p" if draw.multiplies else "std"
            self._strengths[draw.module] = [float(getattr(m[draw.module], name)) for m in modules]
        self._buffers: dict[tuple[int, int], tuple[Tensor, list[Tensor]]] = {}

    def start(self, member_seeds: Sequence[int], epoch: int) -> None:
        """Go to the beginning of the streams of an epoch."""
        if self._strengths:
            for generator, seed in zip(self._generators, member_seeds, strict=True):
                generator.manual_seed(seeds.derive_seed(seed, "noise", epoch, 0))

    def draw(self, batch_size: int) -> list[Tensor]:
        """Factors of dropout and summands of noise for one update, each ``(members, ...)``.

        They are overwritten by the next call.
        """
        return [self._filled(i, batch_size) for i in range(len(self._calls[batch_size]))]

    def _filled(self, position: int, batch_size: int) -> Tensor:
        draw = self._calls[batch_size][position]
        if (position, batch_size) not in self._buffers:
            shape = (len(self._generators), *draw.shape)
            buffer = torch.empty(shape, device=self._device, dtype=self._dtype)
            # Which number goes where depends on the layout that the activations have.
            rows = [
                row if row.stride() == draw.stride else _strided(row, draw.stride) for row in buffer
            ]
            self._buffers[position, batch_size] = buffer, rows
        buffer, rows = self._buffers[position, batch_size]
        strengths = self._strengths[draw.module]
        fill = _dropped if draw.multiplies else _normal
        for row, own, strength, generator in zip(
            buffer, rows, strengths, self._generators, strict=True
        ):
            fill(own, strength, generator)
            if own.data_ptr() != row.data_ptr():
                row.copy_(own)
        return buffer


def _strided(like: Tensor, stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(like.shape, stride, dtype=like.dtype, device=like.device)


def _dropped(out: Tensor, p: float, generator: torch.Generator) -> None:
    if 0 < p < 1:
        out.bernoulli_(1 - p, generator=generator).div_(1 - p)
    else:
        out.fill_(1 - p)  # dropout draws no numbers here


def _normal(out: Tensor, std: float, generator: torch.Generator) -> None:
    out.normal_(generator=generator).mul_(std)
