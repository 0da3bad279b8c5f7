"""Finds where the examples are at every noted call, and remembers it for each way through a model.

This takes a second forward pass, of two examples. It also shows whether they are coupled to the
others: then what the model makes of them depends on the company that they are in.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from memtools.gradients.layout import Layout
from memtools.gradients.recorder import Call, Locator, Recorder

__all__ = ["LAYOUTS", "Layouts", "locate", "path_of", "rows_of", "transfer"]

Run = Callable[[list[int]], Any]
"""Runs the model on some of the examples."""


class Layouts:
    """What is known about a model: for each way through it, the layouts of its calls.

    The models are held weakly. Nothing is remembered of a way on which values may decide where an
    example goes.
    """

    LIMIT = 32
    """Ways remembered for a model."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, list[Layout]]] = WeakKeyDictionary()

    def recall(self, model: nn.Module, path: Any, calls: Sequence[Call]) -> bool:
        """Fill in the layouts of calls on a known way; whether it is one."""
        layouts = self._known.get(model, {}).get(path)
        if path is None or layouts is None:
            return False
        for call, layout in zip(calls, layouts, strict=True):
            call.layout = layout
        return True

    def remember(self, model: nn.Module, path: Any, calls: Sequence[Call]) -> None:
        """Keep the layouts of calls for the next time, if all are known."""
        layouts = [call.layout for call in calls if call.layout is not None]
        if path is None or len(layouts) < len(calls):
            return
        known = self._known.setdefault(model, {})
        if len(known) >= self.LIMIT:
            known.clear()
        known[path] = layouts


LAYOUTS = Layouts()

_STATIC = re.compile(
    r"(?!Flip|Gather|Index|MaskedS|Put|Roll|Scatter|Sort|Take|Topk|Unique)\w+Backward\d+$"
    r"|torch::autograd::(AccumulateGrad|CopySlices)$"
)
"""Nodes of autograd's graph that treat all examples alike, whatever their values are."""


def path_of(inputs: Any, calls: Sequence[Call], nodes: Sequence[str]) -> tuple[Any, ...] | None:
    """What tells one way through a model from another; ``None`` if values may have decided it.

    Args:
        inputs: Whatever else tells them apart: shapes, dtypes.
        calls: The noted calls.
        nodes: Names of the nodes of autograd's graph.
    """
    if not all(_STATIC.match(name) for name in nodes):
        return None
    shapes = (None if call.operand is None else call.operand.shape for call in calls)
    return (inputs, tuple(call.signature for call in calls), tuple(shapes), tuple(nodes))


def locate(weights: Mapping[str, Tensor], calls: Sequence[Call], n: int, run: Run) -> Any:
    """Fill in the layouts of the calls of a pass over n examples, from a pass over two of them.

    Args:
        weights: The tensors that the passes use as weights, by name.
        calls: The calls that were noted in the pass over all examples.
        n: Number of examples.
        run: Runs the model on the examples of these numbers.

    Returns:
        What the model gave for the examples in ``rows_of(n)``; ``None`` for a single example, to
        which everything belongs.
    """
    if n == 1:
        for call in calls:
            if call.operand is not None and len(call.batch_dims):
                dim = call.batch_dims[0]
                call.layout = Layout(1, dim, call.operand.shape[dim])
        return None
    with torch.no_grad(), Locator(weights, calls, n, rows_of(n)):
        return run(rows_of(n))


def rows_of(n: int) -> list[int]:
    """The examples that stand for all: not the first, which a causal coupling leaves alone."""
    return [n // 2, n - 1] if n > 2 else [n - 1]


def transfer(weights: Mapping[str, Tensor], calls: Sequence[Call], n: int, run: Run) -> None:
    """Fill in the layouts of a pass that drew random numbers, from two passes that draw none.

    Args:
        weights: The tensors that the passes use as weights, by name.
        calls: The calls that were noted in the pass over all examples.
        n: Number of examples.
        run: Runs the model in eval mode on the examples of these numbers.
    """
    few = min(n, 3)
    recorder = Recorder(weights)
    with torch.no_grad(), recorder:
        run(list(range(few)))
    locate(weights, recorder.calls, few, run)
    for call, other in zip(calls, recorder.calls, strict=False):
        if call.signature != other.signature:
            return
        layout = other.layout
        if layout is None or call.operand is None:
            continue
        if n == 1 or call.operand.shape[layout.dim] == n * layout.repeats:
            call.layout = replace(layout, n=n)
