"""Bounds of functions of many numbers: sums, shapes, rows, memory."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from memtools.critical.ranges import Range

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def constant(*shape, seed=0):
    """A function that gives the same numbers of both signs each time, in the dtype of an input."""
    count = math.prod(shape)
    return lambda x: (2 * torch.arange(1, count + 1, dtype=x.dtype) + seed).sin().reshape(shape)


def convolved(kernel, *, bias=None, transposed=False, **options):
    functions = [F.conv1d, F.conv2d, F.conv3d]
    if transposed:
        functions = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
    function = functions[len(kernel) - 3]
    kernel = constant(*kernel)
    bias = None if bias is None else constant(bias)
    return lambda x: function(x, kernel(x), bias if bias is None else bias(x), **options)


def normalised(dims, weight=None, bias=None):
    mean, variance = constant(dims, seed=1), constant(dims, seed=2)

    def function(x):
        parameters = [None if p is None else p(x) for p in (weight, bias)]
        return F.batch_norm(x, mean(x), variance(x).abs() + 0.1, parameters[0], parameters[1])

    return function


def written(x):
    """Into memory that was not initialised, through views of it, and from a view of itself."""
    memory = torch.empty_like(x)
    memory[:, 6:] = x[:, :6] * 2
    memory[:, :6].copy_(x[:, 6:])
    rows = memory.view(-1, 3, 4)
    rows[:, 1].neg_()
    rows.transpose(1, 2)[:, 0].add_(rows[:, 2, :3])
    memory[:, 0] = 0.1
    memory[:, 1].zero_()
    return memory


def like(x):
    x = x + torch.ones_like(x) + x.new_full((12,), 0.1) + x.new_zeros(12)
    return x * torch.full_like(x, 0.3) - x.new_ones(12) + torch.zeros_like(x)


CORNERS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)

# Functions of a batch, and the shape of an example: never more than 12 numbers, 4096 corners.
MAPS = {
    "linear": (lambda x: F.linear(x, constant(5, 12)(x), constant(5)(x)), (12,)),
    "linear without bias": (lambda x: F.linear(x, constant(5, 12)(x)), (12,)),
    "linear in rows": (lambda x: F.linear(x, constant(5, 4)(x), constant(5)(x)), (3, 4)),
    "vector": (lambda x: x @ constant(12)(x), (12,)),
    "constant times input": (lambda x: (constant(5, 12)(x) @ x.T).T, (12,)),
    "batches of matrices": (lambda x: torch.matmul(x, constant(2, 3, 4)(x)), (2, 2, 3)),
    "constant times matrices": (lambda x: torch.matmul(constant(2, 4, 2)(x), x), (2, 2, 3)),
    "conv": (convolved((3, 2, 2, 2), bias=3), (2, 2, 3)),
    "conv, padded": (convolved((3, 1, 3, 3), padding=1), (1, 3, 4)),
    "conv, grouped": (convolved((4, 1, 2, 2), groups=2, bias=4), (2, 2, 3)),
    "conv, strided": (convolved((2, 1, 2), stride=2, padding=1, dilation=2), (1, 12)),
    "conv, 3d": (convolved((2, 1, 1, 1, 3), padding="same"), (1, 2, 2, 3)),
    "conv, transposed": (convolved((2, 3, 2, 2), transposed=True, stride=2, bias=3), (2, 2, 3)),
    "conv, transposed, grouped": (
        convolved((4, 1, 3), transposed=True, groups=2, output_padding=1, stride=2),
        (4, 3),
    ),
    "batch norm": (normalised(3, constant(3), constant(3, seed=5)), (3, 2, 2)),
    "batch norm without weight": (normalised(12), (12,)),
    "mean": (lambda x: x.mean((1, 2)), (3, 4)),
    "mean and dtype": (lambda x: x.mean(1, keepdim=True, dtype=torch.float64), (12,)),
    "sum": (lambda x: x.sum(-1), (3, 4)),
    "average pool": (lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), (1, 3, 4)),
    "average pool, 1d": (lambda x: F.avg_pool1d(x, 3, 2), (1, 12)),
    "average pool, 3d": (lambda x: F.avg_pool3d(x, 2, 1), (1, 2, 2, 3)),
    "average pool to a size": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (1, 3, 4)),
    "average pool to one": (lambda x: F.adaptive_avg_pool2d(x, 1), (3, 2, 2)),
    "average pool to a size, 3d": (lambda x: F.adaptive_avg_pool3d(x, (1, 2, 2)), (1, 2, 2, 3)),
    "max pool": (lambda x: F.max_pool2d(x, 2, 1, 1, ceil_mode=True), (1, 3, 4)),
    "max pool, 1d": (lambda x: F.max_pool1d(x, 3, dilation=2), (1, 12)),
    "max pool, 3d": (lambda x: F.max_pool3d(x, 2, 1), (1, 2, 2, 3)),
    "max pool to a size": (lambda x: F.adaptive_max_pool2d(x, 2), (1, 3, 4)),
    "largest": (lambda x: torch.stack([x.amax(1), x.max(1).values, x.max(1)[0]]), (3, 4)),
    "smallest": (lambda x: torch.stack([x.amin(1), x.min(1).values]), (3, 4)),
    "larger": (lambda x: torch.maximum(x[:, :6], x[:, 6:]), (12,)),
    "smaller": (lambda x: torch.minimum(x, constant(12)(x)), (12,)),
    "views": (lambda x: x.view(-1, 4, 3).permute(0, 2, 1).flatten(1)[:, 1:9:2].unsqueeze(1), (12,)),
    "expanded": (lambda x: x[:, :1].expand(-1, 5), (12,)),
    "squeezed": (lambda x: x.reshape(-1, 1, 12).squeeze(1).transpose(0, 1).T.contiguous(), (12,)),
    "parts": (lambda x: torch.cat([*x.split([3, 9], 1), x.unbind(1)[3][:, None]], 1), (12,)),
    "beside constants": (lambda x: torch.cat([x, constant(12)(x).expand_as(x)], 1), (12,)),
    "where": (lambda x: torch.where(constant(12)(x) > 0, x, 0.1), (12,)),
    "masked": (lambda x: x.masked_fill(constant(12)(x) > 0, 0.1), (12,)),
    "chosen": (lambda x: x[:, [3, 1, 1]] + x[:, torch.tensor([0, 5, 7])], (12,)),
    "gathered": (lambda x: x.gather(1, torch.tensor([[3, 1]]).expand(len(x), 2)), (12,)),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 1])), (12,)),
    "turned": (lambda x: x.flip(1).roll(1, 2), (3, 4)),
    "diagonal": (lambda x: x.diagonal(dim1=1, dim2=2), (3, 4)),
    "repeated": (lambda x: x.repeat(1, 2).tile(2), (12,)),
    "windows": (lambda x: x.unfold(1, 3, 2), (12,)),
    "padded": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.1), (1, 3, 4)),
    "padded by reflection": (lambda x: F.pad(x, (1, 2, 0, 1), "reflect"), (1, 3, 4)),
    "padded by replication": (lambda x: F.pad(x, (1, 2, 0, 1), "replicate"), (1, 3, 4)),
    "padded around": (lambda x: F.pad(x, (1, 2, 0, 1), "circular"), (1, 3, 4)),
    "pixel_shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), (4, 1, 3)),
    "upsampled": (lambda x: F.interpolate(x, scale_factor=2), (1, 3, 4)),
    "like": (like, (12,)),
    "memory": (written, (12,)),
    "added to itself": (lambda x: x[:, :6] + 2 * x[:, 6:] - 0.1, (12,)),
    "times another": (lambda x: x[:, :6] * x[:, 6:], (12,)),
    "times itself": (lambda x: x * x, (12,)),
    "divided by another": (lambda x: x[:, :6] / (x[:, 6:].exp() + 1), (12,)),
    "divided, negative": (lambda x: x[:, :6] / (x[:, 6:].abs() * -1 - 0.1), (12,)),
    "to float64 and back": (lambda x: (x.double() * 0.1).float().to(torch.float64), (12,)),
    "two dtypes": (lambda x: x * torch.tensor(0.1).double() + torch.ones(()).double() / 7, (12,)),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), (12,)),
    "inference mode": (torch.inference_mode()(lambda x: F.linear(x, constant(5, 12)(x))), (12,)),
    "softmax": (lambda x: torch.softmax(x, 1), (12,)),
    "softmax in the middle": (lambda x: torch.softmax(x, 1), (3, 4)),
    "softmax that underflows": (lambda x: torch.softmax(300 * x, 1), (12,)),
    "log-softmax": (lambda x: torch.log_softmax(10 * x, -1), (12,)),
    "softmax of one": (lambda x: torch.softmax(x[:, :1], 1), (12,)),
}  # fmt: skip
NOT_TIGHT = {"times itself", "to float64 and back", "softmax that underflows"}


@DTYPES
@pytest.mark.parametrize("name", MAPS)
def test_bounds_of_functions_of_many_numbers(intervals, name, dtype):
    """They hold in all corners and between them, and are reached in the corners."""
    function, shape = MAPS[name]
    torch.manual_seed(0)
    for width in (0.0, 1.0):
        low = torch.randn(1, 12).to(dtype)
        high = (low + width * torch.rand(1, 12)).to(dtype)
        bounds = intervals.bounds_of(function, low.reshape(1, *shape), high.reshape(1, *shape))
        ends = low.double() + CORNERS * (high.double() - low.double())
        inside = low.double() + torch.rand_like(CORNERS[:500]) * (high.double() - low.double())
        values = []
        for points in (ends, inside):
            points = torch.minimum(torch.maximum(points.to(dtype), low), high)
            values.append(function(points.reshape(-1, *shape)).double())
        if name in ("largest", "smallest"):
            values = [v.transpose(0, 1) for v in values]
            bounds = Range(bounds.lower.transpose(0, 1), bounds.upper.transpose(0, 1))
        assert (bounds.lower <= torch.cat(values)).all()
        assert (torch.cat(values) <= bounds.upper).all()
        assert bounds.lower.shape == values[0][:1].shape
        if name not in NOT_TIGHT:
            slack = 2000 * torch.finfo(dtype).eps * (1 + values[0].abs().amax(0, keepdim=True))
            assert (bounds.lower >= values[0].amin(0, keepdim=True) - slack).all()
            assert (bounds.upper <= values[0].amax(0, keepdim=True) + slack).all()
