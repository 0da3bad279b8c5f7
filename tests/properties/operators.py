"""Every operator with arguments that fit, by name, and what it computes in exact arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import memtools_kernels as kernels
import torch
from torch import Tensor


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        call: Takes tensors by name, those that may be left out as well.
        arguments: Such tensors.
    """

    call: Callable[..., Any]
    arguments: dict[str, Tensor]


def _box_step(points: Any, gradients: Any, low: Any, high: Any, **others: Any) -> Any:
    points = points.clone() if isinstance(points, Tensor) else points
    kernels.box_step(points, gradients, low, high, **others)
    return points


def _patch_norms(images: Any, vectors: Any) -> Tensor:
    return kernels.patch_norms(images, vectors, kernel_size=(2,))


ONES, COUNTS = torch.ones(4, 2), torch.arange(4)
OPERATORS = {
    "row_norms": Operator(kernels.row_norms, {"x": ONES}),
    "gini": Operator(kernels.gini, {"values": ONES, "weights": ONES}),
    "logit_scores": Operator(kernels.logit_scores, {"logits": ONES, "targets": COUNTS % 2}),
    "box_noise": Operator(
        lambda keys, steps: kernels.box_noise(keys, steps, 3), {"keys": COUNTS, "steps": COUNTS}
    ),
    "box_step": Operator(
        _box_step,
        {
            "points": ONES,
            "gradients": ONES,
            "low": ONES - 1,
            "high": ONES + 1,
            "unit": torch.tensor(0.1),
            "sizes": torch.ones(4),
            "noise": torch.tensor(0.1),
            "keys": COUNTS,
            "steps": COUNTS,
        },
    ),
    "outer_norms": Operator(
        kernels.outer_norms, {"rows": torch.ones(4, 2, 3), "columns": torch.ones(4, 2, 5)}
    ),
    "patch_norms": Operator(
        _patch_norms, {"images": torch.ones(4, 2, 3), "vectors": torch.ones(4, 3, 2)}
    ),
    "lookup_norms": Operator(
        kernels.lookup_norms,
        {"indices": torch.zeros(4, 2).long(), "gradients": torch.ones(4, 2, 3)},
    ),
    "lookup_dots": Operator(
        kernels.lookup_dots,
        {
            "indices": torch.zeros(4, 2).long(),
            "gradients": torch.ones(4, 2, 3),
            "rows": torch.ones(4, 2, 5),
            "columns": torch.ones(4, 2, 3),
        },
    ),
}
