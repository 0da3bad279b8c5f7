"""Directional derivatives of a computation, for many directions at once.

A computation is recorded as a program of operators, each operator has a rule that carries K
tangents along as a leading dimension, and what the rules do is recorded again: what runs in the end
is a flat list of operators. Products of matrices and what a classifier always has have rules of
their own; everything else follows from ``torch.func.jvp`` of the single operator.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from memtools.sensitivity.program import Call, Program, Value, record

__all__ = ["Linearised"]

aten = torch.ops.aten

LINEAR = {
    aten.clone.default,
    aten.expand.default,
    aten.mean.default,
    aten.mean.dim,
    aten.neg.default,
    aten.permute.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
}
"""Linear in their first argument, and without any other that has a tangent."""

CONSTANT = {
    aten.full_like.default,
    aten.new_full.default,
    aten.new_zeros.default,
    aten.ones_like.default,
    aten.sign.default,
    aten.zeros_like.default,
}
"""Their results do not change with the values that they are given."""


class Linearised:
    """A function and its derivative in several directions of its first arguments at once.

    Args:
        function: From tensors to tensors; what it does must depend on their shapes alone.
        arguments: An example of each argument.
        directions: An example of K directions ``(K, ...)`` of each argument that is varied, from
            the first.
        outputs: How many of the results, from the first, are differentiated.

    Raises:
        NotImplementedError: If the function looks at values.
        RuntimeError: If an operator has no derivative that can be had by ``torch.func.jvp``.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        arguments: Sequence[Tensor],
        *,
        directions: Sequence[Tensor],
        outputs: int,
    ) -> None:
        program = record(function, arguments)
        values = list(program.examples)
        # For fewer directions than K as well, so that not all rows are computed where few count.
        most = len(directions[0])
        linear = {
            count: _derivative(program, [d[:count] for d in directions], outputs)
            for count in sorted({most, -(-most // 2), -(-most // 4)})
        }
        needed = set()
        for one in linear.values():
            used = {v for call in one.calls for v in call.used()} | set(one.outputs)
            needed |= {i for i, v in enumerate(one.arguments[: len(values)]) if v in used}
        self._results = len(program.outputs)
        self._run = program.compiled([*program.outputs, *(values[i] for i in sorted(needed))])
        self._tangents = {
            count: one.compiled(
                arguments=[
                    *(one.arguments[i] for i in sorted(needed)),
                    *one.arguments[len(values) :],
                ]
            )
            for count, one in linear.items()
        }

    def run(self, arguments: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The results, and what :meth:`tangents` wants."""
        everything = self._run(*arguments)
        return everything[: self._results], everything[self._results :]

    def tangents(
        self, known: Sequence[Tensor], directions: Sequence[Tensor], count: int
    ) -> Sequence[Tensor]:
        """The derivatives of the results in the first ``count`` directions, or in more.

        Args:
            known: What :meth:`run` gave.
            directions: ``(K, ...)`` each.
            count: How many of the K matter.
        """
        rows = next(rows for rows in self._tangents if rows >= count)
        return self._tangents[rows](*known, *(d[:rows] for d in directions))


def _derivative(program: Program, directions: Sequence[Tensor], outputs: int) -> Program:
    """From all values of a program and directions to the derivatives of its results."""
    known = list(program.examples)
    varied = program.arguments[: len(directions)]
    count = len(directions[0])

    def derivative(*tensors: Tensor) -> list[Tensor]:
        value = dict(zip(known, tensors, strict=False))
        tangent: dict[Value, Tensor | None] = dict(zip(varied, tensors[len(known) :], strict=True))
        for call in program.calls:
            tangent |= _tangents(call, value, tangent)
        return [
            value[v].new_zeros(count, *value[v].shape) if found is None else found
            for v, found in ((v, tangent.get(v)) for v in program.outputs[:outputs])
        ]

    return record(derivative, [*program.examples.values(), *directions])


def _tangents(
    call: Call, value: dict[Value, Tensor], tangent: dict[Value, Tensor | None]
) -> dict[Value, Tensor | None]:
    """The K tangents of each result of a call, ``None`` where they are zero."""
    flat, spec = tree_flatten((call.args, call.kwargs))
    steps = [tangent.get(a) if isinstance(a, Value) else None for a in flat]
    if all(t is None for t in steps) or call.target in CONSTANT:
        return {}
    if torch.Tag.nondeterministic_seeded in call.target.tags:
        raise NotImplementedError(f"{call.target} draws random numbers")
    results = [r for r in call.results if r]
    if not any(value[r].is_floating_point() for r in results):
        return {}
    given = [value[a] if isinstance(a, Value) else a for a in flat]
    rule = RULES.get(call.target)
    if rule is not None:
        return {results[0]: rule(value[results[0]], given, steps)}
    if call.target in LINEAR:
        args, kwargs = tree_unflatten(given, spec)
        moved = vmap(lambda t: call.target(t, *args[1:], **kwargs))(steps[0])
        return {results[0]: moved}
    found = _by_jvp(call.target, given, steps, spec)
    found = [found] if isinstance(found, Tensor) else found
    return {
        r: f for r, f in zip(call.results, found, strict=True) if r and value[r].is_floating_point()
    }


def _by_jvp(target: Any, given: list[Any], tangents: list[Any], spec: Any) -> Any:
    places = [i for i, t in enumerate(tangents) if t is not None]

    def function(*varied: Tensor) -> Any:
        flat = list(given)
        for place, tensor in zip(places, varied, strict=True):
            flat[place] = tensor
        args, kwargs = tree_unflatten(flat, spec)
        return target(*args, **kwargs)

    primals = tuple(given[i] for i in places)
    return vmap(lambda steps: jvp(function, primals, steps)[1])(tuple(tangents[i] for i in places))


def _batched(matrix: Tensor, count: int) -> Tensor:
    return matrix.expand(count, *matrix.shape)


def _product(a: Tensor, b: Tensor, da: Tensor | None, db: Tensor | None) -> Tensor:
    """Tangents of ``a @ b``."""
    if da is None:
        assert db is not None
        return torch.bmm(_batched(a, len(db)), db)
    of_a = vmap(lambda t: torch.mm(t, b))(da)
    return of_a if db is None else torch.baddbmm(of_a, _batched(a, len(db)), db)


def _mm(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    return _product(*given, *tangents)


def _addmm(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    if given[3:] not in ([], [1, 1]):
        raise NotImplementedError("addmm with factors")
    dc, da, db = tangents[:3]
    if da is None and db is None:
        return _rows(dc, result)
    if dc is not None and da is None:
        return torch.baddbmm(_rows(dc, result), _batched(given[1], len(db)), db)
    product = _product(given[1], given[2], da, db)
    return product if dc is None else product + _rows(dc, result)


def _rows(bias: Tensor, result: Tensor) -> Tensor:
    """Tangents of a summand, over the rows that it was added to."""
    return (bias.unsqueeze(1) if bias.ndim == 2 else bias).expand(len(bias), *result.shape)


def _relu(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    return aten.threshold_backward(tangents[0], result, 0)


def _threshold_backward(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor | None:
    # Piecewise constant in the activation.
    return None if tangents[0] is None else aten.threshold_backward(tangents[0], *given[1:])


def _log_softmax(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    dim = given[1] % result.ndim + 1
    tangent = tangents[0]
    return tangent - (tangent * result.exp()).sum(dim, keepdim=True)


def _log_softmax_backward(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    gradient, output, dim = given[:3]
    of_gradient, of_output = tangents[:2]
    wide = dim % result.ndim + 1
    p = output.exp()
    total = gradient.sum(dim, keepdim=True)
    change = None
    if of_output is not None:
        change = -(p * total) * of_output
    if of_gradient is not None:
        direct = of_gradient - p * of_gradient.sum(wide, keepdim=True)
        change = direct if change is None else change + direct
    assert change is not None
    return change


def _view(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor:
    # The tangents may lie in memory in another order than the values.
    return tangents[0].reshape(len(tangents[0]), *result.shape)


def _nll_loss_backward(result: Tensor, given: list[Any], tangents: list[Any]) -> Tensor | None:
    # Linear in the gradient, and without any dependence on the values of the activations.
    if tangents[0] is None:
        return None
    return vmap(lambda t: aten.nll_loss_backward(t, *given[1:]))(tangents[0])


RULES: dict[Any, Callable[[Any, list[Any], list[Any]], Any]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.relu.default: _relu,
    aten.threshold_backward.default: _threshold_backward,
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
}
"""From the result of an operator, its arguments and their tangents to the result's tangents."""
