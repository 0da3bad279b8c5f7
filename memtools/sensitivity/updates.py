"""One update of an optimiser as a function, and its derivative.

The optimisers of PyTorch work element by element: new weight and new state of an element depend on
the old ones and the gradient of that element alone. So the Jacobian of an update is a handful of
vectors, or of numbers where the update is linear.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["GRADIENT", "WEIGHT", "PullBack", "Rule", "Slice", "Vectors", "rule_for"]

WEIGHT, GRADIENT = "weight", "gradient"

Vectors = dict[str, Tensor]
"""The weights under ``WEIGHT`` and each vector of the optimiser's state under its name."""

Jacobian = dict[str, dict[str, float | Tensor]]
"""``jacobian[new][old]``: derivative of each element of a new vector by that of an old one."""

Function = Callable[[Vectors, Tensor, Mapping[str, Any]], Vectors]


@dataclass(frozen=True)
class Slice:
    """Elements of the flat vector of weights that are updated alike.

    Attributes:
        start: First element.
        stop: Element after the last.
        options: Settings of the optimiser; ``None`` where it leaves the elements alone.
    """

    start: int
    stop: int
    options: Mapping[str, Any] | None


@dataclass(frozen=True)
class Rule:
    """How an optimiser updates.

    Attributes:
        function: From old vectors and gradient to new vectors.
        options: Names of the settings that it reads from a parameter group.
        state: Names of the vectors that the optimiser keeps, as in ``optimizer.state[p]``.
        is_linear: Whether its Jacobian depends on the settings alone.
    """

    function: Function
    options: tuple[str, ...]
    state: tuple[str, ...]
    is_linear: bool

    def apply(self, vectors: Vectors, gradient: Tensor, slices: tuple[Slice, ...]) -> Vectors:
        """The vectors after an update."""
        after = {name: vector.clone() for name, vector in vectors.items()}
        for part in slices:
            if part.options is not None:
                columns = slice(part.start, part.stop)
                old = {name: vector[columns] for name, vector in vectors.items()}
                for name, new in self.function(old, gradient[columns], part.options).items():
                    after[name][columns] = new
        return after

    def pull_back(
        self, vectors: Vectors, gradient: Tensor, slices: tuple[Slice, ...]
    ) -> "PullBack":
        """The derivative of an update at these vectors, as a map of adjoints."""
        jacobians = [
            None if part.options is None else self._jacobian(vectors, gradient, part)
            for part in slices
        ]

        common = _multiple(jacobians)

        def pull(adjoints: Vectors) -> tuple[Vectors, Tensor, float]:
            like = adjoints[WEIGHT]
            before = {}
            for name in vectors:
                if all(_is_copy(jacobian, name) for jacobian in jacobians) and name in adjoints:
                    before[name] = adjoints[name]
                else:
                    before[name] = torch.empty_like(like)
                    for part, jacobian in zip(slices, jacobians, strict=True):
                        _combine(before[name], adjoints, part, jacobian, name)
            if common is not None and common[0] in adjoints:
                return before, adjoints[common[0]], common[1]
            of_gradient = torch.empty_like(like)
            for part, jacobian in zip(slices, jacobians, strict=True):
                _combine(of_gradient, adjoints, part, jacobian, GRADIENT)
            return before, of_gradient, 1.0

        return pull

    def _jacobian(self, vectors: Vectors, gradient: Tensor, part: Slice) -> Jacobian:
        assert part.options is not None
        # A linear rule has the same derivative everywhere, so one element will do.
        columns = slice(part.start, part.start + 1 if self.is_linear else part.stop)
        with torch.enable_grad():
            old = {n: v[columns].detach().requires_grad_() for n, v in vectors.items()}
            slope = gradient[columns].detach().requires_grad_()
            new = self.function(old, slope, part.options)
            inputs = {**old, GRADIENT: slope}
            return {
                name: {
                    key: float(d) if self.is_linear else d
                    for key, d in zip(inputs, _derivatives(value, inputs), strict=True)
                    if d is not None
                }
                for name, value in new.items()
            }


PullBack = Callable[[Vectors], tuple[Vectors, Tensor, float]]
"""From adjoints of the vectors after an update, each ``(K, P)``, to those before, and the
gradient's: a tensor and a factor for it. It may be one of the given tensors."""


def _multiple(jacobians: list[Jacobian | None]) -> tuple[str, float] | None:
    """The new vector whose adjoint, times a number, is the gradient's; as for plain SGD."""
    found = set()
    for jacobian in jacobians:
        terms = [(new, old[GRADIENT]) for new, old in (jacobian or {}).items() if GRADIENT in old]
        if len(terms) != 1 or isinstance(terms[0][1], Tensor):
            return None
        found.add(terms[0])
    return found.pop() if len(found) == 1 else None


def _is_copy(jacobian: Jacobian | None, name: str) -> bool:
    """Whether an old vector goes into its new self alone, and unchanged."""
    if jacobian is None:
        return True
    into = {new: old[name] for new, old in jacobian.items() if name in old}
    factor = into.get(name) if name in jacobian else 1.0
    return isinstance(factor, float) and factor == 1 and set(into) <= {name}


def _combine(
    out: Tensor, adjoints: Vectors, part: Slice, jacobian: Jacobian | None, old: str
) -> None:
    """Write the adjoint of an old vector: a sum over the new ones that it goes into."""
    columns = (slice(None), slice(part.start, part.stop))
    out = out[columns]
    if jacobian is None:  # left alone by the optimiser
        if old in adjoints:
            out.copy_(adjoints[old][columns])
        else:
            out.zero_()
        return
    terms = [
        (adjoint[columns], jacobian.get(new, {new: 1.0}).get(old))
        for new, adjoint in adjoints.items()
    ]
    terms = [(adjoint, factor) for adjoint, factor in terms if factor is not None]
    if not terms:
        out.zero_()
        return
    adjoint, factor = terms[0]
    torch.mul(adjoint, factor, out=out)
    for adjoint, factor in terms[1:]:
        if isinstance(factor, Tensor):
            out.addcmul_(adjoint, factor.expand_as(adjoint))
        else:
            out.add_(adjoint, alpha=factor)


def _derivatives(value: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(inputs)
    return torch.autograd.grad(
        value.sum(), tuple(inputs.values()), retain_graph=True, allow_unused=True
    )


def _sgd(vectors: Vectors, gradient: Tensor, options: Mapping[str, Any]) -> Vectors:
    weight = vectors[WEIGHT]
    if options["maximize"]:
        gradient = -gradient
    if options["weight_decay"]:
        gradient = gradient + options["weight_decay"] * weight
    if not options["momentum"]:
        return {WEIGHT: weight - options["lr"] * gradient}
    if options["is_first"]:
        velocity = gradient
    else:
        velocity = options["momentum"] * vectors["momentum_buffer"]
        velocity = velocity + (1 - options["dampening"]) * gradient
    direction = gradient + options["momentum"] * velocity if options["nesterov"] else velocity
    return {WEIGHT: weight - options["lr"] * direction, "momentum_buffer": velocity}


def _adam(vectors: Vectors, gradient: Tensor, options: Mapping[str, Any]) -> Vectors:
    weight, step = vectors[WEIGHT], options["step"] + 1
    first, second = options["betas"]
    if options["maximize"]:
        gradient = -gradient
    if options["decoupled_weight_decay"]:
        weight = weight * (1 - options["lr"] * options["weight_decay"])
    else:
        gradient = gradient + options["weight_decay"] * weight
    mean = first * vectors["exp_avg"] + (1 - first) * gradient
    square = second * vectors["exp_avg_sq"] + (1 - second) * gradient.square()
    after = {"exp_avg": mean, "exp_avg_sq": square}
    if options["amsgrad"]:
        largest = vectors["max_exp_avg_sq"]
        square = torch.where(square > largest, square, largest)
        after["max_exp_avg_sq"] = square
    # An element whose gradients were all zero stays where it is; the root has no derivative there.
    is_zero = square == 0
    root = torch.where(is_zero, 1.0, square).sqrt()
    root = torch.where(is_zero, 0.0, root) / (1 - second**step) ** 0.5
    stride = options["lr"] / (1 - first**step)
    after[WEIGHT] = weight - stride * mean / (root + options["eps"])
    return after


SGD_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
ADAM_OPTIONS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(_sgd, SGD_OPTIONS, ("momentum_buffer",), is_linear=True),
    Adam: Rule(_adam, ADAM_OPTIONS, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), is_linear=False),
}
RULES[AdamW] = RULES[Adam]


def rule_for(optimizer: Optimizer) -> Rule:
    """The rule of one of PyTorch's optimisers.

    Raises:
        TypeError: If there is none; a subclass may do anything.
    """
    rule = RULES.get(type(optimizer))
    if rule is None:
        names = ", ".join(kind.__name__ for kind in RULES)
        raise TypeError(
            f"optimizer must be one of torch.optim's {names} and no subclass, got "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}; give its update as a "
            "function: update=..."
        )
    return rule
