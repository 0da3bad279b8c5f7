"""How unequally a quantity is spread over the examples: Gini coefficient and Lorenz curve."""

from typing import Any

import torch
from memtools_kernels import gini as operator
from torch import Tensor

__all__ = ["gini", "lorenz_curve"]


def gini(values: Any, weights: Any = None) -> Tensor:
    r"""Gini coefficient of nonnegative values v, with weights w.

    .. math:: G = \frac{\sum_i w_i v_i (W_{i-1} + W_i - W_n)}{W_n \sum_i w_i v_i}, \qquad
              W_i = w_1 + \dots + w_i, \quad v_1 \le \dots \le v_n

    With equal weights this is :math:`\sum_i (2i - n - 1)\, v_i / (n \sum_i v_i)`: 0 where all
    values are equal (all zero included), ``(n - 1) / n`` where one holds everything. Computed in
    float64 (float32 where the device has none).

    Args:
        values: v, tensor, array or sequence of shape ``(..., n)``; one coefficient for each row.
        weights: w, how often each value counts, of the shape of ``values``; ``None`` is once.

    Returns:
        Tensor of shape ``(...)``, float32 (float64 for float64 values).

    Raises:
        ValueError: If there is no value, a value or weight is negative, NaN or infinite, or the
            shapes differ, or the weights of a row are all zero.

    Example:
        >>> gini([0.0, 0.0, 0.0, 1.0])
        tensor(0.7500)
        >>> gini([0.0, 1.0], weights=[3, 1])
        tensor(0.7500)
    """
    values, dtype = _checked("values", values)
    n = values.shape[-1]
    if weights is not None:
        weights = _checked("weights", weights)[0].to(values.device)
        if weights.shape != values.shape or not bool((weights > 0).any(-1).all()):
            raise ValueError(
                f"weights must have the shape of values, {tuple(values.shape)}, and not all be "
                f"zero in a row, got {tuple(weights.shape)}"
            )
        weights = weights.reshape(-1, n)
    return operator(values.reshape(-1, n), weights).view(values.shape[:-1]).to(dtype)


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
    values, dtype = _checked("values", values)
    values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    largest = values.amax(-1, keepdim=True)
    # The curve does not depend on the scale; values near the largest float would overflow in the
    # sum. A row of zeros is spread evenly.
    ordered = torch.where(largest > 0, values / largest, 1.0).sort(-1).values
    n = ordered.shape[-1]
    curve = torch.zeros(*ordered.shape[:-1], n + 1, dtype=ordered.dtype, device=ordered.device)
    torch.cumsum(ordered, -1, out=curve[..., 1:])
    return (curve / curve[..., -1:]).to(dtype)


def _checked(name: str, values: Any) -> tuple[Tensor, torch.dtype]:
    """The values as floating point numbers, and the dtype of the result."""
    values = torch.as_tensor(values).detach()
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"{name} must hold at least one value in shape (..., n), got {tuple(values.shape)}"
        )
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    if not values.is_floating_point():
        values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity; leave those examples out")
    if bool((values < 0).any()):
        raise ValueError(
            f"{name} must be nonnegative, got {float(values.min())}; take norms or absolute values"
        )
    return values, dtype
