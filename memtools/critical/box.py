"""The box around an example, in the units of the inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from memtools.batch import check_tensor

__all__ = ["Bounds", "Box", "pixel_bounds", "pixel_radius", "sizes_of"]

Bounds = tuple[float | Tensor, float | Tensor]
"""Smallest and largest allowed input."""

TOO_WIDE = 2
"""A radius of so many times the spread of all inputs is taken to be in other units."""


@dataclass(frozen=True)
class Box:
    """All points within ``radius`` of an example, element by element, and within the bounds.

    Attributes:
        radius: Half-width; broadcasts against one example.
        low: Smallest allowed input, ``None`` for no bound.
        high: Largest allowed input.
    """

    radius: Tensor
    low: Tensor | None
    high: Tensor | None

    @classmethod
    def around(cls, inputs: Tensor, radius: float | Tensor, bounds: Bounds | None) -> "Box":
        """The box for some inputs.

        Raises:
            ValueError: If radius or bounds do not fit their shape, or bounds leave some out.
        """
        width = sizes_of("radius", radius, inputs)
        if bounds is None:
            box = cls(width, None, None)
        else:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise ValueError(
                    f"bounds must be the smallest and the largest input, got {bounds!r}; pass for "
                    "instance (0, 1)"
                )
            box = cls(width, *(_broadcast("bounds", bound, inputs) for bound in bounds))
            box._check_bounds(inputs, bounds)
        return box

    def walls(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest point of the box of each example, up to rounding.

        Args:
            centres: Examples, ``(n, ...)``.

        Returns:
            Two tensors of the shape of ``centres``, which never leave a centre outside.
        """
        low, high = centres - self.radius, centres + self.radius
        if self.low is not None and self.high is not None:
            low = torch.minimum(torch.maximum(low, self.low), centres)
            high = torch.maximum(torch.minimum(high, self.high), centres)
        return low, high

    def pulled_in(self, points: Tensor, centres: Tensor) -> Tensor:
        """Points between the walls, moved where rounding has put a wall outside of the box.

        Their distances from the centres are then at most ``radius``, measured in the dtype of the
        inputs.
        """
        outside = (points - centres).abs() > self.radius
        # The nearest number to a wall may lie outside; the one before it does not.
        return torch.where(outside, torch.nextafter(points, centres), points)

    def _check_bounds(self, inputs: Tensor, bounds: Bounds) -> None:
        assert self.low is not None
        assert self.high is not None
        # A normalised black pixel may miss the normalised bound by a rounding error, which is that
        # of float32 where images were normalised in it and cast afterwards.
        eps = max(torch.finfo(dtype).eps for dtype in (inputs.dtype, torch.float32))
        slack = 4 * eps * torch.maximum(self.low.abs(), self.high.abs())
        inside = (self.low - slack <= inputs) & (inputs <= self.high + slack)
        if not bool(inside.all()):
            raise ValueError(
                f"bounds must contain the inputs, got {bounds} for inputs from "
                f"{float(inputs.min()):g} to {float(inputs.max()):g}; use the inputs' own units"
            )

    def check_units(self, inputs: Tensor) -> None:
        """Raise if the radius must be in other units than the inputs.

        Raises:
            ValueError: If it is.
        """
        smallest, largest = float(inputs.min()), float(inputs.max())
        widest, span = float(self.radius.max()), largest - smallest
        if self.low is not None and self.high is not None:
            span = float((self.high - self.low).max())
        # A single dark image spans little, and one that is flat says nothing.
        if span and widest >= TOO_WIDE * max(1.0, span):
            raise ValueError(
                f"radius must be in the units of the inputs, got {widest:g} for inputs from "
                f"{smallest:g} to {largest:g}, a box in which every example holds all the others; "
                f"if {widest:g} is on a scale of 0 to 255, pass memtools.pixel_radius({widest:g}), "
                f"which is {widest / 255:.4g} for inputs in [0, 1]"
            )


def pixel_radius(radius: float = 0.3, normalize: Any = None, *, scale: float = 255) -> Any:
    r"""A radius that is given in pixel values, in the units of the model's inputs.

    The paper's radii are on a scale of 0 to 255. Inputs in [0, 1] are pixels divided by 255, and a
    normalisation divides them by the standard deviation of their channel as well:

    .. math:: r_c = \frac{r}{255\, \sigma_c}

    Args:
        radius: Half-width r of the box in pixel values; 0.3 is the paper's.
        normalize: What was done to inputs in [0, 1] afterwards: a
            ``torchvision.transforms.Normalize`` (also of ``v2``, or a ``Compose`` that holds one),
            a pair ``(mean, std)`` of numbers per channel, or ``None`` for nothing.
        scale: Largest pixel value.

    Returns:
        A float without normalisation; with one, a float64 tensor of shape ``(C, 1, 1)``.

    Raises:
        TypeError: If ``normalize`` is none of these.
        ValueError: If ``radius`` or ``scale`` is negative, infinite or NaN, a standard deviation is
            not positive, or a ``Compose`` normalises more often than once.

    Example:
        >>> import torchvision
        >>> normalize = torchvision.transforms.Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.5])
        >>> pixel_radius(8, normalize).flatten()
        tensor([0.1255, 0.1255, 0.0627], dtype=torch.float64)
    """
    for name, value, is_fine in (("radius", radius, radius >= 0), ("scale", scale, scale > 0)):
        if not is_fine or not isfinite(value):
            raise ValueError(f"{name} must be a length in pixel values, got {value}")
    if normalize is None:
        return radius / scale
    _, std = _statistics(normalize)
    return radius / scale / std


def pixel_bounds(normalize: Any = None) -> tuple[Any, Any]:
    r"""The smallest and the largest pixel value in the units of the model's inputs.

    .. math:: \left(\frac{0 - \mu_c}{\sigma_c}, \frac{1 - \mu_c}{\sigma_c}\right)

    Args:
        normalize: As for :func:`pixel_radius`.

    Returns:
        ``(0.0, 1.0)`` without normalisation, otherwise two float64 tensors of shape ``(C, 1, 1)``:
        what ``bounds`` of :func:`memtools.find_critical` takes.

    Raises:
        TypeError: As for :func:`pixel_radius`.
        ValueError: As for :func:`pixel_radius`.
    """
    if normalize is None:
        return 0.0, 1.0
    mean, std = _statistics(normalize)
    return -mean / std, (1 - mean) / std


def _statistics(normalize: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float64, ``(C, 1, 1)``."""
    steps = getattr(normalize, "transforms", None)
    if steps is not None:
        found = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
        if len(found) != 1:
            raise ValueError(
                f"normalize holds {len(found)} normalisations, expected one; pass the "
                "torchvision.transforms.Normalize itself"
            )
        (normalize,) = found
    # A tensor has methods of these names.
    if hasattr(normalize, "std") and not callable(getattr(normalize, "mean", max)):
        normalize = normalize.mean, normalize.std
    if not isinstance(normalize, Sequence) or len(normalize) != 2:
        raise TypeError(
            "normalize must be a torchvision.transforms.Normalize or a pair (mean, std), "
            f"got {type(normalize).__name__}"
        )
    mean, std = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in normalize)
    if len(mean) != len(std):
        raise ValueError(
            f"normalize must have as many means as deviations, got {len(mean)} and {len(std)}"
        )
    if not bool((std > 0).all()) or not bool(torch.isfinite(mean / std).all()):
        raise ValueError(f"normalize must have positive standard deviations, got {normalize[1]}")
    return mean, std


def sizes_of(name: str, value: float | Tensor, inputs: Tensor) -> Tensor:
    """A length in the units of the inputs, one for all elements or broadcast over an example.

    Raises:
        ValueError: If it does not broadcast, or is negative, infinite or NaN.
    """
    value = _broadcast(name, value, inputs)
    if not bool((value >= 0).all()) or not bool(value.isfinite().all()):
        raise ValueError(
            f"{name} must be finite and not negative, got {value.tolist()}; "
            "it is a length in the units of the inputs"
        )
    return value


def _broadcast(name: str, value: float | Tensor, inputs: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        check_tensor(name, value)
        if value.is_complex():
            raise ValueError(f"{name} must be real, got {value.dtype}")
    try:
        value = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a number or a tensor, got {type(value).__name__} ({error})"
        ) from error
    try:
        value.expand(inputs.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast against one example of shape {tuple(inputs.shape[1:])}, "
            f"got shape {tuple(value.shape)}; a value per channel has shape (C, 1, 1)"
        ) from None
    return value
