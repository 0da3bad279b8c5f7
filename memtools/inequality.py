"""How unequally a quantity is spread over the examples: Gini coefficient and Lorenz curve."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["gini", "lorenz_curve"]


def gini(values: Any) -> Tensor:
    r"""Gini coefficient of nonnegative values.

    .. math:: G = \frac{\sum_i (2i - n - 1)\, v_{(i)}}{n \sum_i v_i}, \qquad
              v_{(1)} \le \dots \le v_{(n)}

    0 where all values are equal (all zero included), ``(n - 1) / n`` where one holds everything.
    Computed in float64 (float32 where the device has none).

    Args:
        values: Tensor, array or sequence of shape ``(..., n)``; one coefficient for each row.

    Returns:
        Tensor of shape ``(...)``, float32 (float64 for float64 values).

    Raises:
        ValueError: If there is no value, or one is negative, NaN or infinite.

    Example:
        >>> gini([0.0, 0.0, 0.0, 1.0])
        tensor(0.7500)
    """
    ordered, dtype = _ordered(values)
    n = ordered.shape[-1]
    weights = torch.arange(1 - n, n, 2, dtype=ordered.dtype, device=ordered.device)
    total = ordered.sum(-1)
    coefficient = (ordered @ weights) / (n * total)
    return torch.where(total > 0, coefficient, 0.0).to(dtype)


def lorenz_curve(values: Any) -> Tensor:
    """Share of the total that the smallest ``i`` of ``n`` values hold, for ``i = 0 .. n``.

    The area between this curve and the diagonal is half the Gini coefficient.

    Args:
        values: Tensor, array or sequence of shape ``(..., n)``; one curve for each row.

    Returns:
        Tensor of shape ``(..., n + 1)`` from 0 to 1, float32 (float64 for float64 values); the
        diagonal where all values are zero.

    Raises:
        ValueError: If there is no value, or one is negative, NaN or infinite.

    Example:
        >>> lorenz_curve([3.0, 1.0])
        tensor([0.0000, 0.2500, 1.0000])
    """
    ordered, dtype = _ordered(values)
    n = ordered.shape[-1]
    # A row of zeros is spread evenly.
    ordered = torch.where(ordered.sum(-1, keepdim=True) > 0, ordered, 1.0)
    curve = torch.zeros(*ordered.shape[:-1], n + 1, dtype=ordered.dtype, device=ordered.device)
    torch.cumsum(ordered, -1, out=curve[..., 1:])
    return (curve / curve[..., -1:]).to(dtype)


def _ordered(values: Any) -> tuple[Tensor, torch.dtype]:
    """The values in ascending order, scaled to at most one, and the dtype of the result."""
    values = torch.as_tensor(values).detach()
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"values must hold at least one value in shape (..., n), got {tuple(values.shape)}"
        )
    values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("values must be finite, got NaN or infinity; leave those examples out")
    if bool((values < 0).any()):
        raise ValueError(
            f"values must be nonnegative, got {float(values.min())}; take norms or absolute values"
        )
    largest = values.amax(-1, keepdim=True)
    # Neither coefficient nor curve depends on the scale; values near the largest float would
    # overflow in the sum.
    return (values / torch.where(largest > 0, largest, 1.0)).sort(-1).values, dtype
