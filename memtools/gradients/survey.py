"""Reads autograd's graph, which knows every use of every weight.

A path from the loss to a weight that does not go through a noted call is a use without a closed
form, whatever made it: a custom function, a compiled or scripted part, an operator without a rule.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from memtools.gradients.recorder import Call

__all__ = ["Survey", "names_of", "survey"]


@dataclass(frozen=True)
class Survey:
    """What the graph says.

    Attributes:
        unknown: Leaves that are reached by another way than the noted calls.
        first: The noted calls that have no noted call below them, and not the inputs if the
            backward pass goes there: one that ends at their outputs passes through all the others,
            and forms no gradient of a weight.
        details: Names of the nodes between the calls in the order of the walk, each with the
            dimensions and sizes that it works on.
        is_static: Whether none of the nodes between inputs, calls and outputs may let the values
            decide where an example goes.
    """

    unknown: list[Tensor]
    first: list[Call]
    details: list[tuple[Any, ...]]
    is_static: bool

    @property
    def names(self) -> list[str]:
        """Names of the nodes between the calls, in the order of the walk."""
        return [name for name, *_ in self.details]


def survey(
    roots: Iterable[Node],
    calls: Sequence[Call],
    ends: Iterable[Node] = (),
    *,
    to_ends: bool = False,
) -> Survey:
    """Walk the graph down.

    Args:
        roots: Nodes to begin with: those of the outputs, or of the loss.
        calls: The noted calls.
        ends: Nodes of the inputs.
        to_ends: Whether the backward pass has to reach them as well.
    """
    noted: dict[Node, list[Call]] = {}
    for call in calls:
        if call.edge is not None:
            noted.setdefault(call.edge.node, []).append(call)
    ends = set(ends)
    leads: dict[Node, tuple[bool, bool]] = {}
    """Whether a visited node leads to a noted call, and to the inputs."""
    unknown, first, details, moving = [], [], [], set()
    stack = [(node, False) for node in roots]
    while stack:
        node, seen_below = stack.pop()
        if node in leads and not seen_below:
            continue
        found = noted.get(node)
        if found is None:
            below = [n for n, _ in node.next_functions if n is not None]
        else:
            below = [n for call in found for n in call.below]
        if not seen_below:
            leads[node] = False, False  # for now; the graph has no cycles
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor) and not below:
                unknown.append(variable)
            stack.append((node, True))
            stack.extend((n, False) for n in below if n not in leads)
            continue
        to_calls = any(leads[n][0] or n in noted for n in below)
        to_inputs = any(leads[n][1] or n in ends for n in below)
        if found is not None and not to_calls and not (to_ends and to_inputs):
            first.extend(found)
        leads[node] = to_calls, to_inputs
        if node not in ends:
            name = node.name()
            details.append((name, *(getattr(node, a, None) for a in _details(node, name))))
            if found is None and (to_calls or to_inputs):
                moving.add(name)
    return Survey(unknown, first, details, all(_STATIC.match(name) for name in moving))


_STATIC = re.compile(
    r"(?!Gather|Index|MaskedS|Put|Scatter|Sort|Take|Topk|Unique)\w+Backward\d+$"
    r"|torch::autograd::(AccumulateGrad|CopySlices)$"
)
"""Nodes that treat all examples alike, whatever their values are. Not those written in Python."""

_DETAIL = re.compile(r"_saved_(dims?\d?|\w*sizes?|shifts|start|end|step|repeats|keepdim)$")
_DETAILS: dict[str, list[str]] = {}


def _details(node: Node, name: str) -> list[str]:
    """Attributes of a kind of node that say on which dimensions it works."""
    if name not in _DETAILS:
        _DETAILS[name] = [a for a in dir(node) if _DETAIL.match(a)] if name[-1:].isdigit() else []
    return _DETAILS[name]


def names_of(weights: Mapping[str, Tensor], leaves: Iterable[Tensor]) -> set[str]:
    """Names of the weights that are among the leaves."""
    names = {id(weight): name for name, weight in weights.items()}
    return {names[id(leaf)] for leaf in leaves if id(leaf) in names}
