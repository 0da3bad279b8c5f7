"""Sees the operators that are called with a weight, in anybody's forward pass."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from memtools.gradients.layout import Layout, find_layout
from memtools.gradients.rules import RULES, Operation, Part

__all__ = ["Call", "Locator", "Recorder"]


@dataclass
class Call:
    """A call with weights for which there is a closed form.

    Attributes:
        signature: The operator and the names of its weights.
        operand: The activations that show where the examples are; dropped after use.
        version: Version of the operand at the time of the call.
        batch_dims: Dimensions of the operand in which the examples may be.
        parts: What the rule gives for each weight, by the weight's name.
        shape: Shape of the output.
        edge: Where the gradient of the output arrives; ``None`` if there is none.
        below: Where autograd's graph goes on below the call, but for the weights.
        layout: Where the examples are, once that is known.
    """

    signature: tuple[Any, ...]
    operand: Tensor | None
    version: int
    batch_dims: Sequence[int]
    parts: list[tuple[str, Part]]
    shape: torch.Size
    edge: GradientEdge | None = None
    below: list[Node] = field(default_factory=list)
    layout: Layout | None = None


class Recorder(TorchFunctionMode):
    """Notes calls with weights while it is active.

    It works on the functions of PyTorch's Python interface: no module is looked at, so that
    subclasses, functional calls and shared modules are all the same to it.

    Args:
        weights: The tensors that the forward pass uses as weights, by name.
        tokens: Integer inputs of the model, whose lookups are to be noted.

    Attributes:
        calls: What was noted, in order.
        lookups: Where the gradient of the embedded tokens arrives, by the name of the embedding.
        listener: Called with a call and the gradient of its output as the backward pass gets there.
    """

    def __init__(self, weights: Mapping[str, Tensor], tokens: Tensor | None = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.lookups: dict[str, list[GradientEdge]] = defaultdict(list)
        self._tokens = tokens
        self.listener: Callable[[Call, Tensor], None] | None = None
        self._names = {id(weight): name for name, weight in weights.items()}
        self._repeated: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run what was called, and note it if there is a rule for it and a weight in it."""
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is not None:
            return self._run(rule, func, args, kwargs)
        inside = _OPEN.get(func)
        if inside is None:
            return func(*args, **kwargs)
        with self:
            return inside(*args, **kwargs)

    def _run(self, rule: Callable[..., Operation | None], func: Any, args: Any, kwargs: Any) -> Any:
        call = self._note(rule, func, args, kwargs)
        output = func(*args, **kwargs)
        if self._tokens is not None and func is torch.embedding:
            self._look_up(output, *args)
        if call is None or not isinstance(output, Tensor):
            return output
        if call.operand is None:
            call.operand = output.detach()
            call.version = _version(call.operand)
            self._repeated[id(output)] = weakref.ref(output)
        elif args and output is args[0]:
            call.version = _version(call.operand)  # it works in place
        call.shape = output.shape
        self._keep(call)
        if output.requires_grad and torch.is_grad_enabled():
            self._listen(call, output, args)
        return output

    def _look_up(self, output: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
        tokens = self._tokens
        if tokens is None or indices.shape != tokens.shape or not bool((indices == tokens).all()):
            return
        if not output.requires_grad:
            output.requires_grad_()  # of a frozen embedding
        name = self._names.get(id(weight), "")
        self.lookups[name.rpartition(".")[0]].append(get_gradient_edge(output))

    def _keep(self, call: Call) -> None:
        self.calls.append(call)

    def _note(self, rule: Any, func: Any, args: Any, kwargs: Any) -> Call | None:
        try:
            operation = rule(*args, **kwargs)
        except (TypeError, AttributeError):
            return None  # an unusual way to call it
        if operation is None:
            return None
        parts = [(self._name(part.weight), part) for part in operation.parts]
        parts = [(name, part) for name, part in parts if name is not None]
        if not parts:
            return None
        covered = {id(part.weight) for _, part in parts}
        others = [
            t
            for t in (*args, *kwargs.values())
            if isinstance(t, Tensor) and t.requires_grad and id(t) not in covered
        ]
        operand = None if operation.operand is None else operation.operand.detach()
        return Call(
            (func, *(name for name, _ in parts)),
            operand,
            0 if operand is None else _version(operand),
            operation.batch_dims,
            parts,
            torch.Size(),
            below=[get_gradient_edge(t).node for t in others],
        )

    def _name(self, tensor: Tensor) -> str | None:
        """Name of the weight that a tensor is, or is a view of."""
        if not tensor.requires_grad:
            return None
        name = self._names.get(id(tensor))
        if name is None and tensor._base is not None and not self._is_repeated(tensor):
            name = self._names.get(id(tensor._base)) if _is_one_to_one(tensor) else None
        return name

    def _is_repeated(self, tensor: Tensor) -> bool:
        """Whether a tensor is a weight that was repeated for each example, and noted as such."""
        known = self._repeated.get(id(tensor))
        return known is not None and known() is tensor

    def _listen(self, call: Call, output: Tensor, args: Any) -> None:
        # A layer may return a view of what it has just computed. Working in place on the view
        # would cut it off.
        base = output._base
        fresh = base is not None and all(
            base is not t and base is not t._base for t in args if isinstance(t, Tensor)
        )
        seen = base if base is not None and fresh and base.numel() == output.numel() else output
        call.edge = get_gradient_edge(seen)

        def hook(gradient: Tensor) -> None:
            if self.listener is not None:
                self.listener(call, gradient.reshape(call.shape))

        seen.register_hook(hook)

    def release(self) -> None:
        """Let go of autograd's graph, which holds this recorder by the hooks in it.

        No garbage collector sees through the graph: a cycle would stay for good.
        """
        for call in self.calls:
            call.edge, call.below = None, []
        self.lookups.clear()


class Locator(Recorder):
    """Follows a second forward pass, of some of the examples, to find where they are.

    It compares as it goes, so that no activations are kept.

    Args:
        weights: The tensors that the forward pass uses as weights, by name.
        calls: The calls that were noted for all examples; their layouts are filled in.
        n: How many examples there were.
        rows: Which of them pass this time.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], calls: Sequence[Call], n: int, rows: Sequence[int]
    ) -> None:
        super().__init__(weights)
        self._expected, self._n, self._rows = iter(calls), n, rows

    def _keep(self, call: Call) -> None:
        full = next(self._expected, None)
        if full is None or full.signature != call.signature:
            self._expected = iter(())  # it took another way, and nothing can be matched from here
            return
        assert call.operand is not None
        assert full.operand is not None
        layout = find_layout(full.operand, call.operand, self._n, self._rows)
        if layout is not None and layout.dim in full.batch_dims:
            full.layout = layout

    def _listen(self, call: Call, output: Tensor, args: Any) -> None:
        pass


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_one_to_one(view: Tensor) -> bool:
    """Whether every element of a view is another one of its base."""
    reach = 1
    for stride, size in sorted((view.stride(d), view.shape[d]) for d in range(view.ndim)):
        if size > 1:
            if stride < reach:
                return False
            reach += stride * (size - 1)
    return True


def _open(function: FunctionType) -> FunctionType:
    """A copy of a function of ``torch.nn.functional`` inside which a mode sees the operators.

    The original hands itself to the mode before it does anything; the copy goes on.
    """
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = function.__globals__ | dict.fromkeys(checks, lambda *_: False)
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OPEN = {
    function: _open(function)
    for function in (
        F.batch_norm,
        F.embedding,
        F.group_norm,
        F.instance_norm,
        F.layer_norm,
        F.multi_head_attention_forward,
        F.rms_norm,
    )
}
"""The functions with weights that are written in Python."""
