"""Squared gradient norms of weights with a closed form, added up during a backward pass."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._autograd import _get_current_graph_task_keep_graph as _keeps_graph

from memtools.gradients.pieces import Outer, Piece, sum_squares
from memtools.gradients.recorder import Call
from memtools.gradients.rules import Part

__all__ = ["ClosedForms"]

Region = tuple[int, tuple[tuple[int, int], ...]]
"""Which elements of a weight a view has: offset, then stride and size of its dimensions."""


WAITING_BYTES = 2 * 2**20
"""Bound on the gradients and layer inputs that wait for each other."""


class ClosedForms:
    """Listens to a backward pass, and adds up what each noted call gives.

    Args:
        calls: The noted calls of the forward pass, with their layouts.
        excluded: Names of weights to leave out.

    Attributes:
        names: The weights that are covered, each of them with all of its noted uses.
        missing: Those that were noted and are not covered.
    """

    def __init__(self, calls: Sequence[Call], excluded: Iterable[str] = ()) -> None:
        uses: dict[str, list[tuple[Call, Part]]] = defaultdict(list)
        for call in calls:
            for name, part in call.parts:
                uses[name].append((call, part))
        self.names = {
            name
            for name, found in uses.items()
            if name not in excluded and all(c.layout for c, _ in found) and _separable(found)
        }
        self.missing = uses.keys() - self.names
        self._shared = {
            name for name in self.names if sum(c.edge is not None for c, _ in uses[name]) > 1
        }
        self._pieces: dict[tuple[str, Region], list[Piece]] = defaultdict(list)
        self._squares: list[Tensor] = []
        self._waiting: list[tuple[Call, Tensor, Tensor]] = []
        self._bytes = 0

    def receive(self, call: Call, gradient: Tensor) -> None:
        """Take the gradient of the output of a call.

        Raises:
            RuntimeError: If the input of the call was changed since.
        """
        if call.operand is None or self.names.isdisjoint(name for name, _ in call.parts):
            return
        _check_unchanged(call, call.operand)
        self._waiting.append((call, call.operand, gradient.reshape(call.shape)))
        self._bytes += call.operand.nbytes + gradient.nbytes
        if not _keeps_graph():
            call.operand = None  # as autograd lets go of what it has saved
        if self._bytes > WAITING_BYTES:
            self._work()

    def _work(self) -> None:
        """Turn the gradients that have arrived into norms.

        Small ones wait for each other: after each step of a backward pass the processor's caches
        are full of something else, and Python is several times slower than when it goes on.
        """
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for call, operand, gradient in waiting:
            layout = call.layout
            assert layout is not None
            _check_unchanged(call, operand)
            operand, gradient = layout.arrange(operand), layout.arrange(gradient)
            with _without_autocast(gradient.device.type):
                for name, part in call.parts:
                    if name in self.names:
                        self._take(name, part, part.build(operand, gradient, layout))

    def _take(self, name: str, part: Part, piece: Piece) -> None:
        if name not in self._shared:
            self._squares.append(piece.squares())
            return
        region, swapped = _region(part)
        turned = piece.transposed() if swapped and isinstance(piece, Outer) else piece
        self._pieces[name, region].append(turned)

    def reset(self) -> None:
        """Forget what has arrived."""
        self._pieces.clear()
        self._squares, self._waiting, self._bytes = [], [], 0

    def squares(self) -> Tensor | None:
        """Sums over the weights, shape ``(n,)``; ``None`` if no gradient has arrived."""
        self._work()
        while self._pieces:
            _, pieces = self._pieces.popitem()
            self._squares.append(sum_squares(pieces))
        return torch.stack(self._squares).sum(0) if self._squares else None


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Sums are never rounded to half precision."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS


_AS_IT_IS = nullcontext()


def _separable(uses: list[tuple[Call, Part]]) -> bool:
    """Whether the uses of a weight are of the same elements and can be added, or of others."""
    if len(uses) == 1:
        return True
    by_region: dict[Region, list[Part]] = defaultdict(list)
    for _, part in uses:
        by_region[_region(part)[0]].append(part)
    spans = sorted(
        (offset, offset + sum(stride * (size - 1) for stride, size in dims))
        for offset, dims in by_region
    )
    apart = all(end < start for (_, end), (start, _) in pairwise(spans))
    return apart and all(_addable(parts) for parts in by_region.values())


def _addable(parts: list[Part]) -> bool:
    shapes = {
        tuple(part.weight.shape[::-1] if _region(part)[1] else part.weight.shape) for part in parts
    }
    forms = {part.form for part in parts}
    return len(parts) == 1 or (len(shapes) == 1 and (len(forms) == 1 or forms == _TIED))


_TIED = {"lookup", "outer"}
"""An embedding table that is a linear layer's weight as well."""


def _region(part: Part) -> tuple[Region, bool]:
    """The elements that a use has, and whether it is of their transposed matrix."""
    weight = part.weight
    swapped = part.form == "outer" and weight.stride(0) < weight.stride(1)
    dims = [(weight.stride(d), weight.shape[d]) for d in range(weight.ndim) if weight.shape[d] > 1]
    return (int(weight.storage_offset()), tuple(dims[::-1] if swapped else dims)), swapped


def _check_unchanged(call: Call, operand: Tensor) -> None:
    if not operand.is_inference() and operand._version != call.version:
        raise RuntimeError(
            f"model changed the input of {call.signature[0].__name__} (weights: "
            f"{', '.join(call.signature[1:])}) in place after it was used, so that no gradient can "
            "be had; use the variant that makes a new tensor"
        )
