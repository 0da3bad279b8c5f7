"""Embeddings."""

import torch
from torch import Tensor

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Lookup
from memtools.gradients.rules.table import Operation, Part, rule

__all__: list[str] = []


@rule([torch.embedding])
def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operation | None:
    if scale_grad_by_freq:
        return None

    def build(indices: Tensor, gradient: Tensor, _: Layout) -> Lookup:
        indices = indices.reshape(len(indices), -1)
        gradient = gradient.reshape(*indices.shape, weight.shape[1])
        if padding_idx >= 0:
            gradient = gradient.masked_fill((indices == padding_idx)[..., None], 0)
        return Lookup(indices, gradient, weight.shape[0])

    return Operation(indices, [Part(weight, "lookup", build)], range(indices.ndim))
