"""The gradient of a batch's loss, and the products of adjoints with its derivative.

For an adjoint v of the gradient g(theta, x) of a batch's loss the backward sweep needs
v^T dg/dtheta and v^T dg/dx. As g is itself a gradient, these are the derivatives of g and of the
gradient with respect to x in the direction v of the weights: one pass forward gives both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from memtools.sensitivity.program import below_autograd
from memtools.sensitivity.quick import is_close, nearby
from memtools.sensitivity.replay import Replay
from memtools.sensitivity.tangents import Linearised
from memtools.sensitivity.tape import Step

__all__ = ["Gradient", "Point", "Products", "Pulled"]

Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Point:
    """Where a gradient is taken.

    Attributes:
        weights: Shape ``(P,)``.
        buffers: Buffers of the model before the forward pass.
        inputs: Shape ``(b, ...)``.
        targets: Shape ``(b, ...)``.
    """

    weights: Tensor
    buffers: Buffers
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Pulled:
    """Adjoints, one row each for K of them.

    Attributes:
        weights: Of each weight, ``(K, ...)``.
        examples: Of the inputs, ``(K, b, ...)``, or of the weights of the examples in the loss of
            the batch, ``(K, b)``.
        statistics: Of BatchNorm's running statistics, ``(K, ...)`` each.
    """

    weights: list[Tensor]
    examples: Tensor
    statistics: Buffers


class Gradient(Protocol):
    """The gradient at a point."""

    @property
    def value(self) -> Tensor:
        """Shape ``(P,)``."""
        ...

    @property
    def buffers(self) -> Buffers:
        """Buffers of the model after the forward pass."""
        ...

    def pull(self, adjoints: Tensor, statistics: Buffers, live: int) -> Pulled:
        """Products of the first ``live`` adjoints ``(K, P)`` of the gradient, and others.

        Args:
            adjoints: Of the gradient, ``(K, P)``.
            statistics: Of the running statistics that the forward pass leaves, ``(K, ...)``.
            live: Rows that matter; of the result, only those are right.
        """
        ...


class Products:
    """Gradients of batches, by a recorded program where that can be had.

    Args:
        replay: The model.
        count: Number K of adjoints that are pulled at once.
        of_losses: Whether the weights of the examples are asked for, and not their inputs.
    """

    def __init__(self, replay: Replay, count: int, *, of_losses: bool) -> None:
        self._replay = replay
        self._count = count
        self._of_losses = of_losses
        self._programs: dict[Any, _Recorded | None] = {}

    def at(self, step: Step, point: Point) -> Gradient:
        """The gradient of an update at a point.

        Raises:
            ValueError: If the model has no second derivative, or changes a buffer.
        """
        # Running statistics have a derivative of their own, which the recorded program lacks.
        is_recordable = not self._replay.updates_statistics(step)
        key = (point.inputs.shape, point.targets.shape, point.targets.dtype, step.modes)
        with self._replay.as_in(step):
            if is_recordable and key not in self._programs:
                self._programs[key] = self._recorded(step, point)
            program = self._programs[key] if is_recordable else None
            if program is None:
                return _Plain(self._replay, point, self._of_losses)
            return program.at(point)

    def plainly_at(self, step: Step, point: Point) -> Gradient:
        """As :meth:`at`, by autograd alone; slower."""
        with self._replay.as_in(step):
            return _Plain(self._replay, point, self._of_losses)

    def _recorded(self, step: Step, point: Point) -> "_Recorded | None":
        try:
            program = _Recorded(self._replay, point, self._count, self._of_losses)
            return program if self._agrees(program, step, point) else None
        except ValueError:
            raise
        except Exception:  # whatever may go wrong on the quick way, the plain one is there
            return None
        finally:
            self._replay.rewind(step)

    def _agrees(self, program: "_Recorded", step: Step, point: Point) -> bool:
        """Whether a recorded program and autograd give the same."""
        # Elsewhere than where it was recorded, so that what it took for constant is noticed.
        point = Point(
            nearby(point.weights), point.buffers, point.inputs.flip(0), point.targets.flip(0)
        )
        self._replay.rewind(step)
        plain = _Plain(self._replay, point, self._of_losses)
        self._replay.rewind(step)
        quick = program.at(point)
        numbers = torch.randn(
            self._count, len(point.weights), generator=torch.Generator().manual_seed(0)
        ).to(point.weights)
        one = plain.pull(numbers, {}, 1)
        many = quick.pull(numbers, {}, self._count)
        return all(
            is_close(a, b)
            for a, b in (
                (plain.value, quick.value),
                (_flat(one.weights, 1), _flat(many.weights, 1)),
                (one.examples, many.examples[:1]),
            )
        )


def _flat(rows: Sequence[Tensor], count: int) -> Tensor:
    return torch.cat([row[:count].reshape(count, -1) for row in rows], 1)


class _Plain:
    """The gradient by autograd, and its derivative by autograd through that."""

    def __init__(self, replay: Replay, point: Point, of_losses: bool) -> None:
        self._statistics = {
            name: b.detach().requires_grad_()
            for name, b in replay.statistics_in(point.buffers).items()
        }
        self._weights = [w.detach().requires_grad_() for w in replay.split(point.weights)]
        self._inputs = point.inputs.detach().requires_grad_()
        ones = torch.ones_like(point.weights[:1]).expand(len(point.inputs)).clone()
        ones.requires_grad_(of_losses)
        losses, after = replay.losses(
            self._weights, point.buffers | self._statistics, self._inputs, point.targets
        )
        gradients = torch.autograd.grad(
            replay.joined(losses * ones if of_losses else losses),
            self._weights,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        self._examples = ones if of_losses else self._inputs
        self._gradients = gradients
        self._after = replay.statistics_in(after)
        self._split = replay.split
        self.value = torch.cat([g.detach().reshape(-1) for g in gradients])
        self.buffers = {name: buffer.detach() for name, buffer in after.items()}

    def pull(self, adjoints: Tensor, statistics: Buffers, live: int) -> Pulled:
        adjoints = adjoints[:live]
        statistics = {name: rows[:live] for name, rows in statistics.items()}
        results = [*self._gradients, *self._after.values()]
        given = self._split(adjoints)
        for name, value in self._after.items():
            zero = value.new_zeros(1).expand(len(adjoints), *value.shape)
            given.append(statistics.get(name, zero))
        pairs = [(r, v) for r, v in zip(results, given, strict=True) if r.requires_grad]
        sources = [*self._weights, self._examples, *self._statistics.values()]
        found = _pull_all([r for r, _ in pairs], [v for _, v in pairs], sources, len(adjoints))
        weights, (examples, *rest) = found[: len(self._weights)], found[len(self._weights) :]
        return Pulled(weights, examples, dict(zip(self._statistics, rest, strict=True)))


def _pull_all(
    results: Sequence[Tensor], adjoints: Sequence[Tensor], sources: Sequence[Tensor], count: int
) -> list[Tensor]:
    if not results:
        return [s.new_zeros(count, *s.shape) for s in sources]
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    try:
        found = torch.autograd.grad(results, sources, adjoints, is_grads_batched=True, **options)
    except RuntimeError:  # an operator that vmap does not know: one after the other
        found = _pull_each(results, adjoints, sources, count, options)
    return [
        s.new_zeros(count, *s.shape) if f is None else f
        for s, f in zip(sources, found, strict=True)
    ]


def _pull_each(
    results: Sequence[Tensor],
    adjoints: Sequence[Tensor],
    sources: Sequence[Tensor],
    count: int,
    options: dict[str, Any],
) -> list[Tensor | None]:
    try:
        rows = [
            torch.autograd.grad(results, sources, [v[k] for v in adjoints], **options)
            for k in range(count)
        ]
    except RuntimeError as error:
        raise ValueError(
            f"model has no second derivative that autograd can give ({error}); replace that layer"
        ) from error
    columns = zip(*rows, strict=True)
    return [None if column[0] is None else torch.stack(column) for column in columns]


class _Recorded:
    """The gradient and its derivative as a flat list of operators, for one shape of batch."""

    def __init__(self, replay: Replay, point: Point, count: int, of_losses: bool) -> None:
        self._split = replay.split
        weights = replay.split(point.weights)
        self._number = len(weights)
        self._names = tuple(point.buffers)

        def function(*arguments: Tensor) -> list[Tensor]:
            leaves = [w.detach().requires_grad_() for w in arguments[: len(weights)]]
            x, targets, *buffers = arguments[len(weights) :]
            x = x.detach().requires_grad_()
            named = dict(zip(self._names, buffers, strict=True))
            losses, after = replay.losses(leaves, named, x, targets)
            gradients = torch.autograd.grad(
                replay.joined(losses),
                [*leaves, x],
                allow_unused=True,
                materialize_grads=True,
            )
            examples = losses.detach() if of_losses else gradients[-1]
            return [*gradients[:-1], examples, *after.values()]

        self._program = Linearised(
            function,
            self._arguments(point),
            directions=self._split(point.weights.new_zeros(count, len(point.weights))),
            outputs=len(weights) + 1,
        )
        is_mean = of_losses and replay.tape.reduction == "mean"
        self._factor = 1 / len(point.inputs) if is_mean else 1.0

    def _arguments(self, point: Point) -> list[Tensor]:
        buffers = [point.buffers[name] for name in self._names]
        return [*self._split(point.weights), point.inputs, point.targets, *buffers]

    def at(self, point: Point) -> "_RecordedGradient":
        with below_autograd():
            results, known = self._program.run(self._arguments(point))
        number = self._number
        value = torch.cat([g.reshape(-1) for g in results[:number]])
        buffers = dict(zip(self._names, results[number + 1 :], strict=True))
        return _RecordedGradient(self, value, buffers, known)

    def pull(
        self, known: Sequence[Tensor], adjoints: Tensor, statistics: Buffers, live: int
    ) -> Pulled:
        with below_autograd():
            *weights, examples = self._program.tangents(known, self._split(adjoints), live)
        if self._factor != 1:
            examples = examples * self._factor
        return Pulled(weights, examples, statistics)


@dataclass(frozen=True)
class _RecordedGradient:
    recorded: _Recorded
    value: Tensor
    buffers: Buffers
    known: Sequence[Tensor]

    def pull(self, adjoints: Tensor, statistics: Buffers, live: int) -> Pulled:
        return self.recorded.pull(self.known, adjoints, statistics, live)
