"""What a case of the matrix is: an operation, its implementations, and the float64 oracle."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.kept import first_words, versions_of

Run = Callable[[], Any]
"""The operation, done once; what is timed."""
Way = Callable[[Any], Run]
"""An implementation: prepares what it needs for a problem once."""
Error = Callable[[Any, Any, Tensor], float]
"""How far a result for a problem is from the oracle's."""

PACKAGES = {
    "ART": "adversarial-robustness-toolbox",
    "aum": "aum",
    "backpack": "backpack-for-pytorch",
    "captum": "captum",
    "cleanlab": "cleanlab",
    "foolbox": "foolbox",
    "opacus": "opacus",
    "torchattacks": "torchattacks",
    "torchmetrics": "torchmetrics",
    "triton": "triton",
}


def off_the_largest(problem: Any, result: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    if result.shape != expected.shape:
        raise ValueError(f"shape {tuple(result.shape)} in place of {tuple(expected.shape)}")
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((result.detach().double() - expected).abs().max() / largest)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By ``torch.compile``, for the shapes of one problem."""
    return torch.compile(function, dynamic=False)


class Sizes(NamedTuple):
    """How large the problem is: as a test, and where time is taken."""

    small: int
    full: int


class Operation(NamedTuple):
    """Something to be computed. memtools is the first of the implementations."""

    what: str
    """The problem at its full size."""
    build: Callable[[int], Any]
    sizes: Sizes
    oracle: Callable[[Any], Tensor]
    """The result in float64, from the definition."""
    tolerance: float
    """On the error; what is further off is wrong."""
    ways: Mapping[str, Way]
    error: Error = off_the_largest


class Outcome(NamedTuple):
    """How an implementation fared on a problem."""

    status: str
    """``ok``, ``wrong``, ``refuses`` or ``absent``."""
    error: float | None = None
    message: str = ""
    run: Run | None = None


def checked(operation: Operation, problem: Any, expected: Tensor, way: str) -> Outcome:
    """Run an implementation once and compare it with the oracle."""
    try:
        run = operation.ways[way](problem)
        error = operation.error(problem, run(), expected)
    except ImportError as missing:
        return Outcome("absent", message=first_words(missing))
    except Exception as refusal:
        return Outcome("refuses", message=first_words(refusal))
    right = error <= operation.tolerance  # not so for NaN
    return Outcome("ok" if right else "wrong", error, run=run)


@functools.cache
def versions() -> dict[str, str]:
    """Of what is compared, beside PyTorch."""
    return versions_of(PACKAGES)
