"""Convolutions and transposed convolutions, in one to three dimensions, with groups."""

import torch
from torch import Tensor

from memtools.gradients.layout import Layout
from memtools.gradients.patches import Patches, Window
from memtools.gradients.pieces import Dense
from memtools.gradients.rules.table import Operation, Part, rule

__all__: list[str] = []

Numbers = int | tuple[int, ...] | list[int]


def _each(value: Numbers, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _bias(dims: int, bias: Tensor) -> Part:
    def build(_: Tensor, gradient: Tensor, layout: Layout) -> Dense:
        sums = gradient.flatten(-dims).sum(-1)
        return Dense(sums.sum(1) if layout.repeats > 1 else sums)

    return Part(bias, "dense", build)


@rule([torch.conv1d, torch.conv2d, torch.conv3d])
def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1,
    padding: Numbers | str = 0, dilation: Numbers = 1, groups: int = 1,
) -> Operation | None:  # fmt: skip
    dims = weight.ndim - 2
    if input.ndim != weight.ndim:
        return None  # a single example without a batch
    kernel, dilation = tuple(weight.shape[2:]), _each(dilation, dims)
    if padding == "same":
        before = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    else:
        before = _each(0 if isinstance(padding, str) else padding, dims)
    window = Window(kernel, _each(stride, dims), tuple(before), dilation)

    def build(x: Tensor, gradient: Tensor, layout: Layout) -> Patches:
        return Patches(x, gradient, window, groups, layout.repeats)

    parts = [Part(weight, f"patches {groups}", build)]
    return Operation(input, parts + ([] if bias is None else [_bias(dims, bias)]), range(1))


@rule([torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d])
def _transposed_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Numbers = 1,
    padding: Numbers = 0, output_padding: Numbers = 0, groups: int = 1, dilation: Numbers = 1,
) -> Operation | None:  # fmt: skip
    dims = weight.ndim - 2
    if input.ndim != weight.ndim:
        return None
    kernel = tuple(weight.shape[2:])
    window = Window(kernel, _each(stride, dims), _each(padding, dims), _each(dilation, dims))

    def build(x: Tensor, gradient: Tensor, layout: Layout) -> Patches:
        # The windows slide over the output, one for each position of the input.
        return Patches(gradient, x, window, groups, layout.repeats)

    parts = [Part(weight, f"patches {groups}", build)]
    return Operation(input, parts + ([] if bias is None else [_bias(dims, bias)]), range(1))
