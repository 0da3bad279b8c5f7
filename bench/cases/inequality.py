"""How unequally a quantity is spread: Gini coefficients of many rows."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

import memtools
from bench.cases.operation import Operation, Run, Sizes, Way, compiled

ROWS = 16


def values(size: int) -> Tensor:
    """Rows of so many numbers each, as skewed as norms of gradients."""
    return torch.randn(ROWS, size, generator=torch.Generator().manual_seed(0)).exp()


def eager(values: Tensor) -> Tensor:
    """The textbook's formula over the sorted values."""
    n = values.shape[-1]
    ranks = 2 * torch.arange(1, n + 1, dtype=values.dtype) - n - 1
    return (values.sort(-1).values * ranks).sum(-1) / (n * values.sum(-1))


def by_numpy(values: Tensor) -> Run:
    array = values.numpy()

    def run() -> Tensor:
        n = array.shape[-1]
        ranks = 2 * np.arange(1, n + 1) - n - 1
        return torch.from_numpy(np.sort(array) @ ranks / (n * array.sum(-1)))

    return run


def by_loop(values: Tensor) -> Tensor:
    """Python's own numbers."""
    found = []
    for row in values.tolist():
        n, weighted = len(row), 0.0
        for i, value in enumerate(sorted(row), 1):
            weighted += (2 * i - n - 1) * value
        found.append(weighted / (n * sum(row)))
    return torch.tensor(found)


def mean_difference(values: Tensor) -> Tensor:
    """Half the mean difference of all pairs over the mean, from the definition."""
    wide = values.double()
    differences = sum((wide - wide[:, i : i + 1]).abs().sum(1) for i in range(wide.shape[1]))
    return torch.as_tensor(differences) / (2 * wide.shape[1] * wide.sum(1))


def call(function: Callable[[Tensor], Tensor]) -> Way:
    return lambda values: partial(function, values)


WAYS: dict[str, Way] = {
    "memtools": call(memtools.gini),
    "eager": call(eager),
    "numpy": by_numpy,
    "naive loop": call(by_loop),
    "vmap": call(torch.func.vmap(eager)),
    "torch.compile": lambda values: partial(compiled(eager), values),
}
OPERATIONS = {
    "Gini coefficient": Operation(
        f"{ROWS} rows of 2,000 values", values, Sizes(100, 2000), mean_difference, 1e-5, WAYS
    )
}
