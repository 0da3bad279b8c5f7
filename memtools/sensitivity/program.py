"""A function of tensors as a flat list of PyTorch's operators, which runs without their overhead.

A training step of a small network takes microseconds per operator, and transforms that nest
(``vmap`` of ``jvp`` of ``grad``) spend many times that on themselves. So they run once, while the
operators that come out at the bottom are noted, and from then on only these are called.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Call", "Program", "Value", "below_autograd", "record"]

aten = torch.ops.aten

IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.baddbmm.default: aten.baddbmm_.default,
}

RENAMINGS = (aten.alias.default, aten.detach.default, aten.lift_fresh.default)


@dataclass(frozen=True)
class Value:
    """A tensor in a program, by number."""

    number: int


@dataclass(frozen=True)
class Call:
    """One operator of a program.

    Attributes:
        target: The operator.
        args: Its arguments, a ``Value`` for each tensor.
        kwargs: The same by keyword.
        results: A ``Value`` for each tensor that it returns, ``None`` for anything else.
        is_single: Whether it returns a tensor, and not several.
    """

    target: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Value | None, ...]
    is_single: bool

    def used(self) -> list[Value]:
        """The tensors that it takes."""
        return [a for a in tree_leaves((self.args, self.kwargs)) if isinstance(a, Value)]


@dataclass(frozen=True)
class Program:
    """A recorded function.

    Attributes:
        arguments: What it takes.
        constants: Tensors that it found elsewhere.
        calls: What it does, in order.
        outputs: What it returns.
        examples: The tensors of the recorded run, by value.
    """

    arguments: tuple[Value, ...]
    constants: dict[Value, Tensor]
    calls: tuple[Call, ...]
    outputs: tuple[Value, ...]
    examples: dict[Value, Tensor]

    def compiled(
        self, outputs: Sequence[Value] | None = None, arguments: Sequence[Value] | None = None
    ) -> Callable[..., tuple[Tensor, ...]]:
        """A Python function that calls the operators one after the other.

        Args:
            outputs: What it shall return, in place of ``outputs``.
            arguments: What it shall take, in place of ``arguments``; they may be results of calls,
                which are left out then.

        Returns:
            The function; each tensor is let go as soon as it is not needed any more.
        """
        outputs = self.outputs if outputs is None else outputs
        arguments = self.arguments if arguments is None else arguments
        calls = _in_place(_needed(self.calls, outputs, set(arguments)), self.examples, outputs)
        last: dict[Value, int] = {}
        for place, call in enumerate(calls):
            last |= dict.fromkeys([*call.used(), *(r for r in call.results if r)], place)
        scope: dict[str, Any] = {_name(v): tensor for v, tensor in self.constants.items()}
        lines = [f"def run({', '.join(map(_name, arguments))}):"]
        for place, call in enumerate(calls):
            scope[f"f{place}"] = call.target._op
            results = [_name(r) if r else "_" for r in call.results]
            left = results[0] if call.is_single else f"{', '.join(results)},"
            words = [_source(a, scope) for a in call.args]
            words += [f"{key}={_source(a, scope)}" for key, a in call.kwargs.items()]
            lines.append(f" {left} = f{place}({', '.join(words)})")
            over = [
                _name(v)
                for v in dict.fromkeys([*call.used(), *(r for r in call.results if r)])
                if last[v] == place and v not in outputs and v not in self.constants
            ]
            if over:
                lines.append(f" del {', '.join(over)}")
        lines.append(f" return ({''.join(_name(v) + ', ' for v in outputs)})")
        exec("\n".join(lines), scope)  # our own names and operators, and no text of a user's
        return scope["run"]


def below_autograd() -> AbstractContextManager[object]:
    """For running programs: operators are called without asking autograd, which saves a tenth."""
    return torch._C._AutoDispatchBelowAutograd()


def record(function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> Program:
    """Run a function and note its operators, none of which writes to a tensor.

    Args:
        function: From tensors to tensors.
        arguments: What to run it on.

    Returns:
        The program, right for other arguments of the same shapes as long as what the function does
        depends on shapes alone.

    Raises:
        NotImplementedError: If it looks at values, or writes to its arguments.
    """
    with warnings.catch_warnings():
        # PyTorch's own use of what it has deprecated, when jvp is first called.
        warnings.filterwarnings("ignore", "`torch.jit.script` is")
        return _functional(function, arguments)


def _functional(function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> Program:
    program = _record(function, arguments)
    if any(call.target._schema.is_mutable for call in program.calls):
        program = _record(functionalize(program.compiled()), arguments)
    if any(call.target._schema.is_mutable for call in program.calls):
        raise NotImplementedError("the function writes to its arguments")
    return program


def _record(function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> Program:
    # Views of their own, since one tensor may be given twice.
    arguments = [a.detach() for a in arguments]
    recorder = _Recorder(arguments)
    with recorder:
        results = function(*arguments)
    outputs = tuple(recorder.value_of(r) for r in results)
    return Program(
        recorder.arguments,
        recorder.constants,
        tuple(recorder.calls),
        outputs,
        recorder.examples,
    )


class _Recorder(TorchDispatchMode):
    """Notes every operator that runs."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self._values: dict[int, Value] = {}
        self.examples: dict[Value, Tensor] = {}
        self.constants: dict[Value, Tensor] = {}
        self.calls: list[Call] = []
        self._seen: dict[Any, Any] = {}
        self._views: dict[Any, Value] = {}
        # Tensors are known by their address, which must not be given to another one.
        self._alive: list[Tensor] = []
        self.arguments = tuple(self._new(a) for a in arguments)

    def value_of(self, tensor: Tensor) -> Value:
        """The value that a tensor is."""
        value = self._values.get(id(tensor))
        if value is None:
            value = self._new(tensor)
            self.constants[value] = tensor.detach()
        return value

    def _new(self, tensor: Tensor) -> Value:
        value = Value(len(self.examples))
        self.examples[value] = tensor.detach()
        self._is(tensor, value)
        return value

    def _is(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RENAMINGS:
            result = func(*args, **kwargs)
            self._is(result, self.value_of(args[0]))
            return result
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            raise NotImplementedError(f"{func} looks at values")
        named = tree_map_only(Tensor, self.value_of, (args, kwargs))
        is_pure = not func._schema.is_mutable and not _is_random(func)
        key = (func, repr(named)) if is_pure else None
        if key in self._seen:
            # Computed before. A tensor of its own, since autograd writes on it.
            before = self._seen[key]
            result = tree_map_only(Tensor, Tensor.detach, before)
            for new, old in zip(tree_leaves(result), tree_leaves(before), strict=True):
                if isinstance(new, Tensor):
                    self._is(new, self.value_of(old))
            return result
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and _is_view(func):
            # The same numbers in the same places as a tensor that is known.
            self._views.setdefault(_place(args[0]), self.value_of(args[0]))
            value = self._views.get(_place(result))
            if value is not None:
                self._is(result, value)
                return result
            self._views[_place(result)] = Value(len(self.examples))
        leaves = list(result) if isinstance(result, tuple | list) else [result]
        results = tuple(self._new(r) if isinstance(r, Tensor) else None for r in leaves)
        names, keywords = named
        self.calls.append(Call(func, names, keywords, results, isinstance(result, Tensor)))
        if key is not None:
            self._seen[key] = result
        elif func._schema.is_mutable:
            self._seen.clear()  # it may have been computed from what is now other
        return result


def _is_random(target: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags


def _needed(calls: Sequence[Call], outputs: Sequence[Value], given: set[Value]) -> list[Call]:
    """The calls without which the outputs, and the random state, cannot be had."""
    wanted = set(outputs) - given
    kept = []
    for call in reversed(calls):
        results = {r for r in call.results if r}
        if results & wanted or call.target._schema.is_mutable or _is_random(call.target):
            kept.append(call)
            wanted |= set(call.used()) - given
    return kept[::-1]


def _in_place(
    calls: Sequence[Call], examples: dict[Value, Tensor], outputs: Sequence[Value]
) -> list[Call]:
    """Let sums go where a summand was that nothing else needs, sparing a pass over the memory."""
    if any(call.target._schema.is_mutable for call in calls):
        return list(calls)
    root: dict[Value, Value] = {}
    for call in calls:
        for result in call.results:
            if result and _is_view(call.target):
                source = call.used()[0]
                root[result] = root.get(source, source)
    last: dict[Value, int] = {}
    for place, call in enumerate(calls):
        last |= {root.get(v, v): place for v in call.used()}
    last |= {root.get(v, v): len(calls) for v in outputs}
    made = {r for call in calls for r in call.results if r and r not in root}
    changed = []
    for place, call in enumerate(calls):
        target = IN_PLACE.get(call.target)
        first = call.args[0] if call.args else None
        if target is not None and isinstance(first, Value) and call.results[0]:
            base, others = root.get(first, first), call.used()[1:]
            old, new = examples[first], examples[call.results[0]]
            if (
                base in made
                and last[base] == place
                and all(root.get(v, v) != base for v in others)
                and (old.shape, old.dtype) == (new.shape, new.dtype)
                and old.numel() == examples[base].numel()
            ):
                call = replace(call, target=target)
        changed.append(call)
    return changed


def _is_view(target: OpOverload) -> bool:
    if target is aten._unsafe_view.default:  # which does not say so
        return True
    is_alias = any(r.alias_info is not None for r in target._schema.returns)
    return is_alias and not target._schema.is_mutable


def _place(tensor: Tensor) -> Any:
    """Where in memory the numbers of a tensor are."""
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _name(value: Value) -> str:
    return f"v{value.number}"


def _source(argument: Any, scope: dict[str, Any]) -> str:
    """An argument as Python code; what has no literal goes into the scope."""
    if isinstance(argument, Value):
        return _name(argument)
    if isinstance(argument, list | tuple):
        return f"[{', '.join(_source(a, scope) for a in argument)}]"
    if argument is None or isinstance(argument, bool | int):
        return repr(argument)
    name = f"c{len(scope)}"
    scope[name] = argument
    return name
