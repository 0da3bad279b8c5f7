"""Scales and shifts after a normalisation of each example by itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from memtools.gradients.layout import Layout
from memtools.gradients.pieces import Dense
from memtools.gradients.rules.sums import reduce_to
from memtools.gradients.rules.table import Operation, Part, rule

__all__: list[str] = []

Normalize = Callable[[Tensor], Tensor]


def _operation(
    input: Tensor, aligned: tuple[int, ...], weight: Tensor | None, bias: Tensor | None,
    normalize: Normalize, batch_dims: Sequence[int],
) -> Operation:  # fmt: skip
    """``weight * normalize(x) + bias``, with the weight broadcast from the shape ``aligned``."""

    def scale(x: Tensor, gradient: Tensor, layout: Layout) -> Dense:
        return Dense(reduce_to(layout.arrange_shape(aligned), gradient, x, normalize))

    def shift(x: Tensor, gradient: Tensor, layout: Layout) -> Dense:
        return Dense(reduce_to(layout.arrange_shape(aligned), gradient, gradient, lambda _: 1.0))

    parts = [
        Part(w, "dense", build) for w, build in ((weight, scale), (bias, shift)) if w is not None
    ]
    return Operation(input, parts, batch_dims)


def _over_last(
    input: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    normalize: Normalize,
) -> Operation:
    free = input.ndim - len(shape)
    return _operation(input, (1,) * free + tuple(shape), weight, bias, normalize, range(free))


def _over_channels(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, normalize: Normalize
) -> Operation:
    aligned = (1, input.shape[1], *[1] * (input.ndim - 2))

    def each(x: Tensor) -> Tensor:
        return normalize(x.reshape(-1, *input.shape[1:])).reshape(x.shape)

    return _operation(input, aligned, weight, bias, each, range(1))


@rule([torch.layer_norm])
def _layer_norm(
    input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> Operation:  # fmt: skip
    shape = tuple(normalized_shape)
    return _over_last(input, shape, weight, bias, lambda x: torch.layer_norm(x, shape, eps=eps))


@rule([torch.rms_norm])
def _rms_norm(
    input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None = None,
    eps: float | None = None,
) -> Operation:  # fmt: skip
    shape = tuple(normalized_shape)
    # The default depends on the dtype, which is widened for the sum.
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _over_last(input, shape, weight, None, lambda x: torch.rms_norm(x, shape, eps=eps))


@rule([torch.group_norm])
def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Operation:  # fmt: skip
    return _over_channels(input, weight, bias, lambda x: torch.group_norm(x, num_groups, eps=eps))


@rule([torch.instance_norm])
def _instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, use_input_stats: bool, momentum: float, eps: float,
    cudnn_enabled: bool,
) -> Operation | None:  # fmt: skip
    if use_input_stats:
        return _over_channels(input, weight, bias, lambda x: F.instance_norm(x, eps=eps))
    return _batch_norm(
        input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled
    )


@rule([torch.batch_norm])
def _batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Operation | None:  # fmt: skip
    if training or running_mean is None or running_var is None:
        return None
    channels = (-1, *[1] * (input.ndim - 2))
    mean, variance = running_mean.clone().view(channels), running_var.clone().view(channels)

    def normalize(x: Tensor) -> Tensor:
        return (x - mean.to(x)) * (variance.to(x) + eps).rsqrt()

    return _over_channels(input, weight, bias, normalize)
