"""Sees the operators that are called with a weight, in anybody's forward pass."""

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from memtools.gradients.layout import Layout
from memtools.gradients.opened import OPEN
from memtools.gradients.rules import REPEATING, RULES, Part, Rows, rows_of

__all__ = ["Call", "Recorder", "Seen"]


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
        n: Number of examples.
        tokens: Integer inputs of the model, whose lookups are to be noted.

    Attributes:
        lookups: Where the gradient of the embedded tokens arrives, by the name of the embedding.
        listener: Called with a call and the gradient of its output as the backward pass gets there.
    """

    def __init__(self, weights: Mapping[str, Tensor], n: int, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.lookups: dict[str, list[GradientEdge]] = defaultdict(list)
        self.listener: Callable[[Call, Tensor], None] | None = None
        self._tokens = tokens
        self._names = {id(weight): name for name, weight in weights.items()}
        self._n = n
        self._repeated: dict[int, weakref.ref[Tensor]] = {}
        self._shared: dict[int, tuple[weakref.ref[Tensor], Rows, Seen]] = {}
        self._seen: list[Seen] = []
        self._calls: list[Call] = []

    @property
    def calls(self) -> list[Call]:
        """What was noted, in order."""
        # Worked out all at once, after the forward pass: in it, every line of Python is slow, as
        # each layer drives it out of the processor's caches.
        seen, self._seen = self._seen, []
        for one in seen:
            one.call = self._work_out(one)
            one.forget()
            if one.call is not None:
                self._calls.append(one.call)
        for one in seen:
            if one.rows_are_used and one.call is not None:
                one.call.parts, one.call.edge = [], None  # accounted for where they are used
        return self._calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run what was called, and note it if there is a rule for it and a weight in it."""
        kwargs = kwargs or {}
        if func in RULES:
            tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            if any(self._name(t) is not None for t in tensors):
                return self._run(func, args, kwargs, tensors)
            if func is torch.embedding:
                return self._look_up(func(*args, **kwargs), *args)
        elif func in OPEN:
            with self:
                return OPEN[func](*args, **kwargs)
        return func(*args, **kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        below = [(t, t.grad_fn) for t in tensors if t.requires_grad]
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or any(is_functorch_wrapped_tensor(t) for t in tensors):
            return output
        if func is torch.embedding:
            output = self._look_up(output, *args)
        versions = {id(t): _version(t) for t in tensors}
        one = Seen(func, args, kwargs, tensors, output.shape, versions)
        if func is torch.embedding and self._n > 1:
            rows = rows_of(*args, **kwargs)
            if rows is not None:
                self._shared[id(output)] = weakref.ref(output), rows, one
        if func in REPEATING:
            one.output = output.detach()
            self._repeated[id(output)] = weakref.ref(output)
        if output.requires_grad and torch.is_grad_enabled():
            one.below = below
            self._listen(one, output)
        self._keep(one)
        return output

    def _keep(self, one: "Seen") -> None:
        self._seen.append(one)

    def _look_up(self, output: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
        tokens = self._tokens
        if tokens is None or indices.shape != tokens.shape or not bool((indices == tokens).all()):
            return output
        if not output.requires_grad and torch.is_grad_enabled():
            output = output.requires_grad_().clone()  # of a frozen embedding
        if not output.requires_grad:
            return output
        name = self._names.get(id(weight), "")
        self.lookups[name.rpartition(".")[0]].append(get_gradient_edge(output))
        return output

    def _name(self, tensor: Tensor) -> str | None:
        """Name of the weight that a tensor is, or is a view of."""
        name = self._names.get(id(tensor))
        rows = self._rows_in(tensor)
        if rows is not None:
            return self._name(rows[1].table)
        if name is not None or tensor._base is None or id(tensor._base) not in self._names:
            return name
        known = self._repeated.get(id(tensor))
        if known is not None and known() is tensor:
            return None  # a weight that was repeated for each example, and noted as such
        return self._names[id(tensor._base)] if _is_one_to_one(tensor) else None

    def _rows_in(self, tensor: Tensor) -> tuple[weakref.ref[Tensor], Rows, "Seen"] | None:
        """The rows of a table that a tensor is, if they are the same for all examples."""
        known = self._shared.get(id(tensor))
        return known if known is not None and known[0]() is tensor else None

    def _work_out(self, one: "Seen") -> Call | None:
        try:
            operation = RULES[one.func](*one.args, **one.kwargs)
        except (TypeError, AttributeError):
            return None  # an unusual way to call it
        if operation is None:
            return None
        parts = [(self._name(part.weight), part) for part in operation.parts]
        parts = [(name, part) for name, part in parts if name and part.weight.requires_grad]
        covered = [id(part.weight) for _, part in parts]
        weights = [t for t in one.tensors if self._name(t) is not None and t.requires_grad]
        if sorted(covered) != sorted(id(t) for t in weights) or not parts:
            return None  # a weight has another part in it as well
        for i, (name, part) in enumerate(parts):
            rows = self._rows_in(part.weight)
            if rows is not None and part.form == "dense" and not part.weight._backward_hooks:
                parts[i] = name, rows[1].part(part)
                rows[2].rows_are_used = True
        if any(not _is_plain_view(part.weight) for _, part in parts):
            return None
        repeats = operation.operand is None
        operand = one.output if operation.operand is None else operation.operand.detach()
        assert operand is not None
        others = [] if repeats else [(t, node) for t, node in one.below if id(t) not in covered]
        return Call(
            (one.func, *(name for name, _ in parts)),
            operand,
            one.versions.get(id(operation.operand), _version(operand)),
            operation.batch_dims,
            parts,
            one.shape,
            one.edge,
            [node or get_gradient_edge(t).node for t, node in others if node or t.is_leaf],
        )

    def _listen(self, one: "Seen", output: Tensor) -> None:
        # A layer may return a view of what it has just computed. Working in place on the view
        # would cut it off.
        base = output._base
        fresh = base is not None and all(base is not t and base is not t._base for t in one.tensors)
        seen = base if base is not None and fresh and base.numel() == output.numel() else output
        one.edge = edge = get_gradient_edge(seen)
        number = edge.output_nr  # not the edge: a node must not hold itself

        def hook(gradients: tuple[Tensor, ...]) -> None:
            gradient = gradients[number]
            if self.listener is not None and one.call is not None and gradient is not None:
                self.listener(one.call, gradient)

        # On the node, and not on the tensor: a user's hook on the tensor comes first.
        edge.node.register_prehook(hook)

    def release(self) -> None:
        """Let go of autograd's graph, which holds this recorder by the hooks in it.

        No garbage collector sees through the graph: a cycle would stay for good.
        """
        for call in self.calls:
            call.edge, call.below = None, []
        self.lookups.clear()


class Seen:
    """A call that has a weight in it, as it was made."""

    __slots__ = (
        "args", "below", "call", "edge", "func", "kwargs", "output", "rows_are_used", "shape",
        "tensors", "versions",
    )  # fmt: skip

    def __init__(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], shape: torch.Size,
        versions: dict[int, int],
    ) -> None:  # fmt: skip
        self.func, self.args, self.kwargs, self.tensors = func, args, kwargs, tensors
        self.shape, self.versions = shape, versions
        self.below: list[tuple[Tensor, Node | None]] = []
        self.output: Tensor | None = None
        self.edge: GradientEdge | None = None
        self.call: Call | None = None
        self.rows_are_used = False

    def forget(self) -> None:
        """Let go of what was only needed to work out the call."""
        self.args, self.kwargs, self.tensors, self.below = (), {}, [], []
        self.edge = self.output = None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_plain_view(weight: Tensor) -> bool:
    """Whether a weight is a leaf, or autograd sees nothing but views between it and one."""
    node = weight.grad_fn
    if weight.is_leaf:
        return True
    if weight._backward_hooks:
        return False
    while node is not None and _VIEWS.match(node.name()):
        node = node.next_functions[0][0]
    return node is not None and not node.next_functions


_VIEWS = re.compile(
    r"(Alias|AsStrided|Chunk|Diagonal|Expand|Permute|ReshapeAlias|Select|Slice|Split|SplitWithSizes"
    r"|Squeeze|T|Transpose|Unbind|Unsqueeze|UnsafeView|View)Backward\d+$"
)


def _is_one_to_one(view: Tensor) -> bool:
    """Whether every element of a view is another one of its base."""
    reach = 1
    for stride, size in sorted((view.stride(d), view.shape[d]) for d in range(view.ndim)):
        if size > 1:
            if stride < reach:
                return False
            reach += stride * (size - 1)
    return True
