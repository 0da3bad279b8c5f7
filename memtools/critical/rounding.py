"""How much of a difference between logits rounding can explain, measured on the model itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Rounding", "measured_rounding"]

REPEATS = 4
EXACT = {
    "_to_copy", "abs", "cat", "clone", "constant_pad_nd", "copy_", "detach", "embedding", "gather",
    "index", "index_select", "max_pool2d_with_indices", "neg", "relu", "relu_", "stack",
}  # fmt: skip
"""Operators that round nothing, or only what they would always round alike."""

SAFETY = 4
"""Largest rounding that is assumed, over the largest one of a few that were seen."""


class _Shaken(TorchDispatchMode):
    """Moves every element that an operator makes by one unit of rounding, up or down at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in EXACT:
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self._shake(tensor)
        return made

    def _shake(self, tensor: Tensor) -> None:
        device = tensor.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        eps = torch.finfo(tensor.dtype).eps
        factors = torch.empty(tensor.shape, dtype=torch.float64, device=device)
        factors.bernoulli_(0.5, generator=self._generators[device]).mul_(2 * eps).add_(1 - eps)
        tensor.mul_(factors.to(tensor.dtype))


@dataclass(frozen=True)
class Rounding:
    """What rounding can do to the lead of a class.

    Attributes:
        relative: Lead that it can explain, over the largest logit.
        scale: Largest logit of the sample on which that was measured. For smaller ones rounding
            need not be smaller: it may come from terms that cancel.
    """

    relative: float
    scale: float

    def explains(self, lead: Tensor, logits: Tensor) -> Tensor:
        """Whether rounding can explain a lead, ``(m,)`` bool, among logits ``(m, C)``."""
        largest = logits.detach().abs().amax(1).clamp_min(self.scale)
        return ~(lead > self.relative * largest)


def measured_rounding(call: Callable[[], Tensor]) -> Rounding:
    r"""How much rounding changes the difference of two logits of an example.

    Each of the operators of a forward pass rounds its result. Here every result is moved by a
    relative :math:`\pm\epsilon` of its own dtype, at random, and the change of the logits is seen:
    stochastic arithmetic (Vignes, 1993), which needs no other precision than the model's own and
    holds for any model, under autocast too. Of four draws over all logits, the largest, times 4.

    Args:
        call: Gives the logits ``(n, C)`` of a few examples.

    Returns:
        The bound.
    """
    with torch.no_grad():
        exact = call().double()
        if exact.ndim != 2 or not bool(exact.isfinite().all()):
            return Rounding(0.0, 0.0)  # an error of its own follows
        scale, worst = float(exact.abs().max()), 0.0
        for seed in range(REPEATS):
            with _Shaken(seed):
                change = call().double() - exact
            worst = max(worst, float((change.amax(1) - change.amin(1)).max()))
    return Rounding(SAFETY * worst / scale if scale else 0.0, scale)
