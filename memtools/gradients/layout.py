"""Where the examples of a batch are in a tensor inside a model.

A layer may see the batch first, ``(n, T, d)``, second, ``(T, n, d)``, or folded into another
dimension, ``(n * T, d)`` or ``(T * n, d)``. Shapes alone cannot tell these apart; a second forward
pass of a few of the examples can.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Layout", "find_layout", "is_close"]


@dataclass(frozen=True)
class Layout:
    """Dimension ``dim`` holds n examples, each of them ``repeats`` times.

    Attributes:
        n: Number of examples.
        dim: The dimension that they are in.
        repeats: Entries of that dimension for each example.
        outermost: Whether the entries of one example lie beside each other, ``(n, repeats)``, or
            one in each of ``repeats`` rounds, ``(repeats, n)``.
    """

    n: int
    dim: int
    repeats: int = 1
    outermost: bool = True

    def arrange(self, tensor: Tensor) -> Tensor:
        """The tensor with its examples first.

        Where there are repeats, they take the place of the dimension that held both; else that
        dimension moves to the front.
        """
        if self.repeats == 1:
            return tensor if self.dim == 0 else tensor.movedim(self.dim, 0)
        sizes = (self.n, self.repeats) if self.outermost else (self.repeats, self.n)
        examples = self.dim if self.outermost else self.dim + 1
        return tensor.unflatten(self.dim, sizes).movedim(examples, 0)

    def arrange_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what an example has of a tensor that is the same for all examples.

        ``shape`` has one entry for each dimension, 1 for that of the examples.
        """
        kept = (1,) if self.repeats > 1 else ()
        return shape[: self.dim] + kept + shape[self.dim + 1 :]


def find_layout(
    full: Tensor, part: Tensor, n: int, rows: Sequence[int], *, same: bool = False
) -> Layout | None:
    """How ``full`` holds n examples, seen from ``part``, which holds only those in ``rows``.

    Args:
        full: A tensor of all examples.
        part: The same tensor of another pass, of some examples in another order.
        n: Number of all examples.
        rows: Numbers of those in ``part``.
        same: Whether it has the same values for all examples, so that only its shape can tell.

    Returns:
        The only layout under which the values of each example in ``part`` are near its own in
        ``full`` and far from those of all others, or ``None``.
    """
    if full.ndim != part.ndim or full.dtype != part.dtype:
        return None
    differing = [d for d in range(full.ndim) if full.shape[d] != part.shape[d]]
    if not differing and len(rows) == n:  # all examples in another order
        differing = [d for d in range(full.ndim) if full.shape[d] and full.shape[d] % n == 0]
    fitting = []
    for dim in differing:
        repeats, rest = divmod(full.shape[dim], n)
        if rest or part.shape[dim] != repeats * len(rows) or (len(differing) > 1 and len(rows) < n):
            continue
        for outermost in (True, False)[: 1 + (repeats > 1)]:
            whole = Layout(n, dim, repeats, outermost)
            few = Layout(len(rows), dim, repeats, outermost)
            if same or _are_matched(whole.arrange(full), few.arrange(part), rows):
                fitting.append(whole)
    return fitting[0] if len(fitting) == 1 else None


FEATURES = 4096
"""Elements of an example that are looked at to tell it from others."""


def _are_matched(whole: Tensor, few: Tensor, rows: Sequence[int]) -> bool:
    whole, few = (t.reshape(len(t), -1) for t in (whole, few))
    step = -(-whole.shape[1] // FEATURES) or 1
    distances = torch.cdist(few[:, ::step].double(), whole[:, ::step].double())
    own = torch.zeros_like(distances, dtype=torch.bool)
    own[range(len(rows)), list(rows)] = True
    nearest = distances.masked_fill(own, torch.inf).amin(1)
    # Batches of another size are summed in another order, so that an example is not quite itself.
    return bool(((distances[own] <= 0.1 * nearest) & (nearest > 0)).all())


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two versions of the same activations differ by no more than rounding.

    Batches of another size are summed in another order, and layers amplify that; activations of
    other examples differ by about as much as they are large.
    """
    if not a.is_floating_point():
        return torch.equal(a, b)
    coarse = a.dtype in (torch.float16, torch.bfloat16)
    tolerance = 0.1 if coarse else 1e-2
    a, b = a.detach().double(), b.detach().double()
    # Through a product, so that NaN in both, from a masked row, is a difference.
    return bool((a - b).square().sum() <= tolerance**2 * a.square().sum())
