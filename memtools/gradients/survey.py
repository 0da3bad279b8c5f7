"""Reads autograd's graph, which knows every use of every weight.

A path from the loss to a weight that does not go through a noted call is a use without a closed
form, whatever made it: a custom function, a compiled or scripted part, an operator without a rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from memtools.gradients.recorder import Call

__all__ = ["Survey", "names_of", "survey"]


@dataclass(frozen=True)
class Survey:
    """What the graph says.

    Attributes:
        unknown: Leaves that are reached by another way than the noted calls.
        first: Edges of the noted calls that have no noted call below them: a backward pass that
            ends there passes through all the others, and forms no gradient of a weight.
        nodes: Names of the nodes between the calls.
    """

    unknown: list[Tensor]
    first: list[GradientEdge]
    nodes: list[str]


def survey(roots: Iterable[Node], calls: Sequence[Call], ends: Iterable[Node] = ()) -> Survey:
    """Walk the graph down from the loss.

    Args:
        roots: Nodes of the loss.
        calls: The noted calls.
        ends: Further nodes that the backward pass has to reach, such as that of the inputs.
    """
    noted: dict[Node, list[Call]] = {}
    for call in calls:
        if call.edge is not None:
            noted.setdefault(call.edge.node, []).append(call)
    leads = dict.fromkeys(ends, True)
    """Whether a visited node leads to a noted call, or is one of the ends."""
    unknown, first, names = [], [], []
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
            leads[node] = False  # for now; the graph has no cycles
            names.append(node.name())
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tensor) and not below:
                unknown.append(variable)
            stack.append((node, True))
            stack.extend((n, False) for n in below if n not in leads)
            continue
        below_leads = any(leads[n] or n in noted for n in below)
        if found is not None and not below_leads:
            first.extend(call.edge for call in found if call.edge is not None)
        leads[node] = below_leads
    return Survey(unknown, first, names)


def names_of(weights: Mapping[str, Tensor], leaves: Iterable[Tensor]) -> set[str]:
    """Names of the weights that are among the leaves."""
    names = {id(weight): name for name, weight in weights.items()}
    return {names[id(leaf)] for leaf in leaves if id(leaf) in names}
