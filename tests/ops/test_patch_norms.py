"""`patch_norms` against PyTorch's gradients of a convolution's weight, one example at a time.

TRITON_INTERPRET=1 in the environment chooses the kernels; test_interpreter.py runs this file so.
"""

import importlib
import itertools
import math
import re
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from memtools_kernels import patch_norms
from memtools_kernels.patch_norms import (
    INTERPRET,
    _by_kernel,
    _by_patches,
    _by_pixels,
    _patch_norms_op,
)
from memtools_kernels.windows import Window
from torch.func import jacfwd, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ON_EACH = pytest.mark.parametrize("device", DEVICES)
WAYS = {"kernel": _by_kernel, "patches": _by_patches, "pixels": _by_pixels}

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_BACK = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Case(NamedTuple):
    """A convolution and what it is applied to."""

    channels: int
    out: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1
    behind: tuple[int, ...] | None = None  # zeros behind beyond the padding; pixels left out if < 0
    n: int = 2
    m: int = 1  # images of an example

    @property
    def window(self):
        ones = (1,) * len(self.kernel)
        zeros = (0,) * len(self.kernel)
        return Window(
            self.kernel, self.stride or ones, self.padding or zeros, self.dilation or ones
        )

    @property
    def options(self):
        _, stride, padding, dilation = self[3:7]
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        return {"kernel_size": self.kernel, **options, "groups": self.groups}

    def convolve(self, images, weight, groups=None):
        window, pads = self.window, []
        behind = self.behind or (0,) * len(self.kernel)
        for before, more in zip(window.padding, behind, strict=True):
            pads = [before, before + more, *pads]
        return CONVOLVE[len(self.kernel)](
            F.pad(images, pads), weight, None, window.stride, 0, window.dilation,
            groups or self.groups,
        )  # fmt: skip

    def unseen(self, images):
        """Which pixels no window sees."""
        images = images.detach().double().cpu().requires_grad_()
        weight = torch.ones(self.out, self.channels // self.groups, *self.kernel).double()
        (count,) = torch.autograd.grad(self.convolve(images, weight).sum(), images)
        return count == 0

    @property
    def positions(self):
        one = torch.zeros(1, self.channels, *self.spatial)
        weight = torch.zeros(self.out, self.channels // self.groups, *self.kernel)
        return self.convolve(one, weight).shape[2:]

    @property
    def shapes(self):
        many = (self.n,) if self.m == 1 else (self.n, self.m)
        return (*many, self.channels, *self.spatial), (*many, self.out, *self.positions)

    def random(self, dtype=torch.float32, device="cpu"):
        generator = torch.Generator().manual_seed(math.prod(self.shapes[0]))
        images, vectors = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for shape in self.shapes
        )
        return images, vectors

    def signs(self, dtype=torch.float32, device="cpu"):
        """Images and vectors of -1, 0 and 1: all sums are exact."""
        generator = torch.Generator().manual_seed(math.prod(self.shapes[0]))
        images, vectors = (
            torch.randint(-1, 2, shape, generator=generator).to(device, dtype)
            for shape in self.shapes
        )
        return images, vectors

    def blocks(self, x):
        """Images or vectors as the reference's three ways take them: a group for an example."""
        x = x.unflatten(-len(self.kernel) - 1, (self.groups, -1))
        x = x[:, None] if self.m == 1 else x
        return x.movedim(2, 1).flatten(0, 1)

    def gradient(self, images, vectors):
        """Of the weight, for one example, in float64, one group after the other."""
        weight = torch.zeros(self.out, self.channels // self.groups, *self.kernel).double()
        output = self.convolve(images, weight.requires_grad_())
        (gradient,) = torch.autograd.grad((output * vectors).sum(), weight)
        return gradient.unflatten(0, (self.groups, -1))

    def exact(self, images, vectors):
        """Of every example and group: squares, those if nothing cancelled, and of single terms."""
        rows = []
        for x, v in zip(images.double().cpu(), vectors.double().cpu(), strict=True):
            x, v = (x, v) if self.m > 1 else (x[None], v[None])
            squares = self.gradient(x, v).flatten(1).square().sum(1)
            sizes = self.gradient(x.abs(), v.abs()).flatten(1).square().sum(1)
            ones = torch.ones(self.groups, self.channels // self.groups, *self.kernel).double()
            patches = self.convolve(x.square(), ones)
            diagonal = patches * v.square().unflatten(1, (self.groups, -1)).sum(2)
            rows.append(torch.stack([squares, sizes, diagonal.transpose(0, 1).flatten(1).sum(1)]))
        return torch.stack(rows, 1) if rows else torch.zeros(3, 0, self.groups).double()

    def compare(self, got, images, vectors):
        """With float64, where a result may be off as far as derived in test_outer_norms.py.

        For either form of a sum over all positions, here of each group. A patch is no shorter than
        the sum over its offsets of the inner products of pixels, each over the channels.
        """
        squares, sizes, diagonal = self.exact(images, vectors)
        positions = self.m * math.prod(self.positions)
        r = self.out // self.groups
        c = self.channels // self.groups * math.prod(self.kernel)
        half = epsilon(images, vectors) / 2
        off = positions * half * sizes.sqrt()
        error = 2 * squares.sqrt() * off + off**2 + min(r * c, 3 * 1025) * half * squares
        kept = squares >= diagonal / 9
        error = error + kept * (r + c + 1 + 128) * half * sizes + self.groups * half * squares
        assert got.dtype == (
            torch.float64 if torch.float64 in (images.dtype, vectors.dtype) else torch.float32
        )
        assert got.device == images.device
        assert got.shape == images.shape[:1]
        off = (got.cpu().double() - squares.sum(1)).abs()
        assert (off <= 2 * error.sum(1)).all(), off / squares.sum(1)

    def compare_exactly(self, got, images, vectors):
        """With integers below 2^24, exact in any order.

        A reference takes roots, of runs of 1024 squares and of those: 2 eps for each of three
        levels and a product, and half an eps for adding a run, a group, or one of two bands.
        """
        squares, _, diagonal = self.exact(images, vectors)
        assert (diagonal < 2**24).all()
        runs = self.channels * self.out * math.prod(self.kernel) / 1024
        tolerance = (8 + (runs + self.groups + 2) / 2) * epsilon(images, vectors)
        assert_close(got.cpu().double(), squares.sum(1), rtol=tolerance, atol=0)

    def check(self, images, vectors, values=None):
        """Compare what comes of ``values`` in some memory layout."""
        before = images.clone(), vectors.clone()
        got = patch_norms(images, vectors, **self.options)
        self.compare(got, *values or (images, vectors))
        assert torch.equal(images, before[0])
        assert torch.equal(vectors, before[1])


def epsilon(*tensors):
    """Of the type to sum in."""
    wide = any(x.dtype == torch.float64 for x in tensors)
    return torch.finfo(torch.float64 if wide else torch.float32).eps


def fenced(x):
    """The same values amid NaN, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], math.nan)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


CASES = {
    "1d": Case(2, 3, (9,), (3,)),
    "1d, one element": Case(1, 1, (1,), (1,)),
    "1d, everything": Case(
        4, 6, (17,), (3,), stride=(2,), padding=(3,), dilation=(3,), groups=2, m=2
    ),
    "1d, one position": Case(3, 4, (5,), (5,)),
    "1d, long": Case(1, 2, (181,), (4,), padding=(2,), n=1),
    "2d": Case(3, 5, (7, 6), (3, 2)),
    "2d, one channel": Case(1, 1, (7, 6), (3, 3)),
    "2d, stride": Case(3, 5, (9, 8), (3, 2), stride=(2, 3)),
    "2d, stride leaves pixels out": Case(2, 3, (9, 10), (2, 1), stride=(4, 3)),
    "2d, padding": Case(3, 5, (5, 4), (3, 3), padding=(1, 2)),
    "2d, more padding than kernel": Case(2, 3, (3, 4), (2, 2), padding=(3, 5)),
    "2d, padding and stride": Case(2, 3, (8, 7), (3, 3), padding=(1, 1), stride=(2, 2)),
    "2d, dilation": Case(2, 3, (9, 8), (3, 2), dilation=(2, 5)),
    "2d, kernel larger than the image": Case(2, 3, (2, 3), (5, 4), padding=(3, 2)),
    "2d, stride, padding and dilation": Case(
        2, 3, (9, 11), (3, 2), stride=(3, 2), padding=(2, 1), dilation=(2, 3)
    ),
    "2d, groups": Case(6, 4, (5, 6), (3, 2), padding=(1, 0), groups=2),
    "2d, depthwise": Case(5, 5, (5, 6), (3, 3), padding=(1, 1), groups=5),
    "2d, depthwise, larger kernel": Case(3, 3, (7, 7), (5, 5), padding=(2, 2), groups=3, n=2),
    "2d, depthwise, several for each": Case(3, 6, (5, 6), (2, 2), groups=3),
    "2d, pixels": Case(5, 4, (3, 4), (1, 1)),
    "2d, pixels, stride": Case(5, 4, (5, 4), (1, 1), stride=(2, 3)),
    "2d, pixels, padding": Case(2, 3, (3, 4), (1, 1), padding=(1, 2)),
    "2d, pixels, groups": Case(6, 4, (3, 4), (1, 1), groups=2),
    "2d, pixels, many images": Case(3, 4, (2, 3), (1, 1), m=3),
    "2d, one pixel": Case(7, 5, (1, 1), (1, 1)),
    "2d, one position": Case(3, 4, (4, 3), (4, 3)),
    "2d, many images": Case(2, 3, (5, 4), (3, 3), padding=(1, 1), m=3),
    "2d, many images and groups": Case(4, 6, (5, 4), (2, 3), stride=(2, 1), groups=2, m=2, n=2),
    "2d, more zeros behind": Case(2, 3, (5, 4), (2, 4), padding=(0, 1), behind=(1, 3)),
    "2d, windows beyond": Case(2, 3, (3, 4), (2, 2), stride=(2, 1), behind=(7, 9)),
    "2d, fewer positions": Case(2, 3, (7, 8), (3, 2), padding=(1, 1), behind=(-2, -4)),
    "2d, pixels, more and fewer positions": Case(2, 3, (4, 5), (1, 1), behind=(2, -3)),
    "2d, as many positions as pixels": Case(
        2, 3, (4, 5), (1, 1), stride=(2, 1), padding=(0, 1), behind=(3, -2)
    ),
    "3d": Case(2, 3, (3, 4, 5), (2, 3, 2)),
    "3d, everything": Case(
        4, 2, (5, 4, 6), (2, 3, 2), stride=(2, 1, 3), padding=(1, 2, 0), dilation=(1, 2, 3),
        groups=2, m=2, n=2,
    ),
    "3d, pixels": Case(3, 2, (2, 3, 2), (1, 1, 1)),
    "3d, depthwise": Case(2, 2, (3, 4, 3), (2, 2, 2), stride=(1, 2, 1), groups=2),
    "2d, three examples": Case(2, 3, (5, 4), (3, 2), n=3),
    "tiles of vectors, 16": Case(2, 16, (5,), (2,), n=2),
    "tiles of vectors, 33": Case(2, 33, (5,), (2,), n=2),
    "tiles of vectors, 65": Case(2, 65, (17,), (2,), n=2),
    "tiles of vectors, 129": Case(2, 129, (18,), (2,), n=2),
    "tiles of patches, 16": Case(4, 2, (5, 5), (2, 2), n=2),
    "tiles of patches, 33": Case(11, 2, (5,), (3,), n=2),
    "tiles of patches, 63": Case(7, 3, (6, 6), (3, 3), n=2),
    "tiles of patches, 132": Case(33, 3, (5, 6), (2, 2), n=2),
    "tiles of both": Case(34, 69, (4, 5), (2, 2), n=1),
}  # fmt: skip

# For these a kernel takes inner products: tiles are of 32 positions in float64, otherwise of 64.
GRAM = {
    torch.float64: [
        Case(10, 90, (8, 4), (3, 3), padding=(1, 1), n=2),
        Case(23, 190, (3, 13), (3, 3), padding=(1, 1), n=1, behind=(0, -2)),
        Case(40, 84, (16,), (2,), padding=(1,), behind=(-1,), m=2, n=1),
    ],
    torch.float32: [
        Case(33, 140, (8, 8), (2, 2), padding=(1, 1), behind=(-1, -1), n=2),
        Case(20, 160, (7, 9), (3, 3), padding=(1, 1), n=1),
        Case(70, 140, (2, 4, 4), (1, 1, 2), padding=(0, 0, 1), behind=(0, 0, -1), m=2, n=1),
    ],
}  # fmt: skip


@ON_EACH
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *itertools.product(CASES, [torch.float32]),
        *itertools.product(list(CASES)[:: 2 if INTERPRET else 1], [torch.float64]),
        *itertools.product(list(CASES)[:: 5 if INTERPRET else 1], [torch.float16, torch.bfloat16]),
    ],
    ids=str,
)
def test_exact_sums(name, dtype, device):
    case = CASES[name]
    images, vectors = case.signs(dtype, device)
    got = patch_norms(fenced(images), fenced(vectors), **case.options)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == (case.n,)
    case.compare_exactly(got, images, vectors)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("images", "vectors", "groups"),
    [
        ((0, 2, 5, 4), (0, 6, 3, 2), 1), ((0, 2, 5, 4), (0, 6, 3, 2), 2),
        ((3, 0, 5, 4), (3, 6, 3, 2), 1), ((3, 0, 5, 4), (3, 6, 3, 2), 2),
        ((3, 2, 5, 4), (3, 0, 3, 2), 2), ((3, 2, 0, 4), (3, 6, 3, 2), 1),
        ((3, 2, 5, 4), (3, 6, 0, 2), 1), ((3, 0, 2, 5, 4), (3, 0, 6, 3, 2), 1),
    ],
)  # fmt: skip
def test_nothing(images, vectors, groups, dtype, device):
    tensors = [torch.ones(shape, dtype=dtype, device=device) for shape in (images, vectors)]
    got = patch_norms(*tensors, kernel_size=(3, 3), groups=groups)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.tolist() == [0] * images[0]


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES[1:] if INTERPRET else DTYPES, ids=str)
@pytest.mark.parametrize("number", range(3))
def test_exact_sums_by_inner_products(number, dtype, device):
    case = GRAM[torch.float64 if dtype == torch.float64 else torch.float32][number]
    images, vectors = case.signs(dtype, device)
    got = patch_norms(fenced(images), fenced(vectors), **case.options)
    case.compare_exactly(got, images, vectors)


@pytest.mark.skipif(INTERPRET, reason="the ways are a matter of the reference")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_way_of_the_reference(name, way, dtype):
    case = CASES[name]
    if way == "pixels" and case.m > 1:
        pytest.skip("of one image")
    for values in (case.signs(dtype), case.random(dtype)):
        blocks = [case.blocks(fenced(x)) for x in values]
        got = WAYS[way](blocks[0], blocks[1], case.window).view(case.n, -1).sum(1)
        case.compare(got, *values)
    images, vectors = case.signs(dtype)
    got = WAYS[way](case.blocks(images), case.blocks(vectors), case.window)
    case.compare_exactly(got.view(case.n, -1).sum(1), images, vectors)


CHOICES = {
    "kernel": [
        Case(2, 3, (7, 6), (3, 3)), Case(1, 1, (7, 6), (3, 3)), Case(5, 4, (8, 8), (1, 1)),
        Case(6, 6, (7, 6), (3, 3), groups=6), Case(16, 160, (8, 8), (3, 3), padding=(1, 1), m=2),
    ],
    "patches": [
        Case(40, 40, (9, 9), (3, 3), stride=(6, 6)), Case(10, 40, (5, 5), (5, 5)),
        Case(50, 40, (4, 4), (1, 1)), Case(16, 160, (12, 12), (3, 3), stride=(2, 2)),
        Case(10, 180, (5,), (3,), m=3, groups=2), Case(10, 90, (3, 3, 3), (2, 2, 2)),
    ],
    "pixels": [
        Case(32, 32, (4, 4), (3, 3), padding=(1, 1)), Case(16, 160, (8, 8), (3, 3), padding=(1, 1)),
        Case(64, 128, (4, 4), (3, 3), padding=(1, 1), groups=2), Case(200, 190, (8, 8), (1, 1)),
        Case(40, 40, (4, 4), (3, 3), padding=(2, 2), stride=(2, 2)),
    ],
}  # fmt: skip


@pytest.mark.skipif(INTERPRET, reason="the ways are a matter of the reference")
@pytest.mark.parametrize("way", WAYS)
def test_which_way_the_reference_takes(way, monkeypatch):
    module = importlib.import_module("memtools_kernels.patch_norms")
    for other in WAYS.keys() - {way}:
        monkeypatch.setattr(module, f"_by_{other}", f"{other}, which cannot be called")
    for case in CHOICES[way]:
        case.check(*case.random())


@pytest.mark.skipif(not INTERPRET, reason="the kernels' forms")
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_which_kernel_is_launched(dtype, monkeypatch):
    module = importlib.import_module("memtools_kernels.outer_norms")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_gram_kernel", None)
        for case in CHOICES["kernel"][:4]:
            case.check(*case.signs(dtype))
        for case in GRAM[torch.float64 if dtype == torch.float64 else torch.float32]:
            with pytest.raises(TypeError, match="NoneType"):
                patch_norms(*case.signs(dtype), **case.options)
    monkeypatch.setattr(module, "_direct_kernel", None)
    for case in CHOICES["kernel"][:4]:
        with pytest.raises(TypeError, match="NoneType"):
            patch_norms(*case.signs(dtype), **case.options)


@pytest.mark.skipif(INTERPRET, reason="chunks and bands are a matter of the reference")
@pytest.mark.parametrize(
    ("way", "case"),
    [
        ("kernel", Case(32, 32, (3, 3), (3, 3), n=113)),
        ("kernel", Case(32, 32, (3, 3), (3, 3), n=114)),
        ("patches", Case(16, 3, (10, 10), (3, 3), n=113)),
        ("patches", Case(16, 3, (10, 10), (3, 3), n=114)),
        ("patches", Case(28, 3, (66, 66), (3, 3), n=2)),
        ("patches", Case(33, 3, (66, 66), (3, 3), n=2)),
        ("patches", Case(17, 3, (66, 66), (3, 3), n=2, m=2)),
        ("pixels", Case(3, 3, (10, 10), (3, 3), n=104)),
        ("pixels", Case(3, 3, (10, 10), (3, 3), n=105)),
        ("pixels", Case(2, 3, (33, 33), (3, 3), n=2)),
    ],
    ids=str,
)
def test_chunks_and_bands_of_the_reference(way, case):
    images, vectors = case.random()
    got = WAYS[way](case.blocks(images), case.blocks(vectors), case.window)
    case.compare(got, images, vectors)


@ON_EACH
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize(
    "case",
    [
        CASES["2d, one position"],
        *([] if INTERPRET else [CASES["2d, groups"], CHOICES["pixels"][0]]),
    ],
    ids=str,
)
def test_mixed_dtypes(case, dtypes, device):
    images, vectors = (x.to(dtype) for x, dtype in zip(case.random(), dtypes, strict=True))
    case.check(images.to(device), vectors.to(device))


@ON_EACH
@pytest.mark.parametrize(
    "case",
    [
        *(CASES[name] for name in ("1d, everything", "2d, groups", "2d, pixels")),
        GRAM[torch.float64][0],
        *([] if INTERPRET else [cases[0] for cases in CHOICES.values()]),
    ],
    ids=str,
)
def test_float64_is_not_rounded_to_float32(case, device):
    images, vectors = case.random(torch.float64, device)
    got = patch_norms(images, vectors, **case.options)
    want = case.exact(images, vectors)[0].sum(1)
    assert_close(got.cpu(), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_padding_same(dims, groups):
    # Even kernels need one zero more behind than before.
    kernel, dilation, spatial = (4, 3, 2)[:dims], (1, 2, 3)[:dims], (5, 4, 3)[:dims]
    generator = torch.Generator().manual_seed(dims)
    images = torch.randn(2, 4, *spatial, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, *kernel, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 6, *spatial, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    want = []
    for x, v in zip(images, vectors, strict=True):
        output = CONVOLVE[dims](x[None], weight, None, 1, "same", dilation, groups)
        (gradient,) = torch.autograd.grad((output[0] * v).sum(), weight)
        want.append(gradient.square().sum())
    padding = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    got = patch_norms(
        images, vectors, kernel_size=kernel, padding=padding, dilation=dilation, groups=groups
    )
    assert_close(got, torch.stack(want), rtol=1e-12, atol=0)


BACK = {
    "plain": {},
    "stride": {"stride": (3, 2, 2)},
    "padding": {"padding": (2, 1, 1)},
    "more zeros behind": {"stride": (3, 2, 2), "padding": (1, 0, 1), "output_padding": (2, 1, 0)},
    "dilation": {"dilation": (2, 3, 1), "padding": (1, 2, 0)},
    "everything": {
        "stride": (2, 3, 2), "padding": (1, 2, 1), "output_padding": (1, 2, 0),
        "dilation": (3, 1, 2),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "groups", "name"),
    [(2, 1, name) for name in BACK]
    + [(dims, groups, "everything") for dims, groups in ((1, 2), (2, 2), (2, 4), (3, 1), (3, 2))],
)
def test_transposed_convolutions(dims, groups, name):
    # Its windows slide over the gradient of the output; its input is the vectors.
    options = {key: value[:dims] for key, value in BACK[name].items()}
    kernel, spatial = (3, 4, 2)[:dims], (4, 3, 2)[:dims]
    generator = torch.Generator().manual_seed(dims)
    inputs = torch.randn(2, 4, *spatial, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    outputs, want = [], []
    for x in inputs:
        output = CONVOLVE_BACK[dims](x[None], weight, groups=groups, **options)
        vectors = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        outputs.append(vectors[0])
        (gradient,) = torch.autograd.grad((output * vectors).sum(), weight)
        want.append(gradient.square().sum())
    options.pop("output_padding", None)
    got = patch_norms(torch.stack(outputs), inputs, kernel_size=kernel, groups=groups, **options)
    assert_close(got, torch.stack(want), rtol=1e-12, atol=0)


@ON_EACH
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 3, (3, 3), (1, 1), stride=(11, 11), padding=(4, 4)),
        Case(2, 3, (1,), (1,), stride=(5,), padding=(2,)),
        Case(2, 3, (2, 5), (2, 3), stride=(7, 1), padding=(3, 1)),
        Case(2, 3, (1, 2, 2), (1, 2, 2), stride=(5, 1, 1), padding=(2, 0, 0)),
        Case(2, 3, (4, 4), (2, 1), padding=(4, 0), behind=(-7, 0)),
    ],
    ids=str,
)
def test_windows_that_see_only_zeros(case, device):
    case.check(*case.random(device=device))


def cancelling(case, dtype, device):
    """Ordinary examples, and between them such that cancel, which have odd numbers."""
    images, vectors = case.random(torch.float64)
    spatial = tuple(range(1, 1 + len(case.kernel)))
    # Vectors sum to zero over positions, images have an offset that leaves them few digits.
    vectors[1] -= vectors[1].mean(spatial, keepdim=True)
    images[1] += torch.finfo(dtype).eps ** -0.7
    # All cancels: an image of equal pixels, and vectors that sum to exactly zero.
    images[3] = images[3].amax(spatial, keepdim=True)
    positions = vectors[3].flatten(1)
    a, b = (positions[:, i::3].mul(16).round().clamp(-60, 60) for i in (0, 1))
    positions.copy_(torch.stack([a, b, -a - b], 2).flatten(1) / 16)
    return images.to(device, dtype), vectors.to(device, dtype)


# 18, 12, 2 times 18, 63 and 30 positions. For the last two, for the last in float64, a kernel takes
# inner products.
CANCELLING = [
    Case(20, 60, (7, 4), (2, 2), n=4),
    Case(50, 40, (4, 3), (1, 1), n=4),
    Case(60, 80, (5, 8), (3, 3), groups=2, n=4),
    Case(33, 140, (10, 8), (2, 2), n=4),
    Case(21, 84, (6, 7), (2, 2), n=4),
]


@ON_EACH
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (CANCELLING[3], torch.float32),
        (CANCELLING[4], torch.float64),
    ]
    if INTERPRET
    else list(itertools.product(CANCELLING, DTYPES)),
    ids=str,
)
def test_cancelling_sums_are_as_good_as_formed_ones(case, dtype, device):
    images, vectors = cancelling(case, dtype, device)
    case.check(images, vectors)
    if not INTERPRET:
        case.check(images[1::2], vectors[1::2])
        for compute in WAYS.values():
            got = compute(case.blocks(images), case.blocks(vectors), case.window)
            case.compare(got.view(-1, case.groups).sum(1), images, vectors)


LAYOUTS = {
    "channels last": lambda x: x.movedim(-3, -1).contiguous().movedim(-1, -3),
    "channels last, fenced": lambda x: fenced(x.movedim(-3, -1)).movedim(-1, -3),
    "examples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed pixels": lambda x: x.mT.contiguous().mT,
    "every other pixel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "every other channel": lambda x: x.repeat_interleave(2, -3)[..., ::2, :, :],
}


@ON_EACH
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        *(CASES[name] for name in ("2d, groups", "2d, pixels", "2d, many images and groups")),
        *([] if INTERPRET else [CASES["3d, everything"]]),
        *([] if INTERPRET else [cases[0] for cases in CHOICES.values()]),
    ],
    ids=str,
)
def test_any_strides(case, layout, device):
    # One dtype: which elements are read does not depend on it.
    images, vectors = case.random(device=device)
    change = LAYOUTS[layout]
    case.check(change(images), change(vectors), (images, vectors))


@ON_EACH
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d], ids=str)
def test_channels_last(memory_format, device):
    case = CASES["2d, groups" if memory_format == torch.channels_last else "3d"]
    images, vectors = case.random(device=device)
    for x in (images, images.contiguous(memory_format=memory_format)):
        case.check(x, vectors.contiguous(memory_format=memory_format), (images, vectors))


@ON_EACH
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("name", ["2d, pixels", "2d, groups"][INTERPRET:])
def test_expanded(name, dims, device):
    case = CASES[name]
    images, vectors = case.random(device=device)
    index = tuple(slice(0, 1) if d in dims else slice(None) for d in range(4))
    case.check(images[index].expand(images.shape), vectors)
    case.check(images, vectors[index].expand(vectors.shape))


@ON_EACH
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "stride",
    [(2**30, 9, 3, 1), (3, 2**30, 9, 1), (1, 3, 2**30, 9), (1, 3, 9, 2**30)],
    ids=["examples", "channels", "rows", "pixels"],
)
def test_offsets_beyond_32_bits(stride, which, device):
    # 4 GB of address space, of which a few pages are touched.
    case = Case(3, 3, (3, 3), (1, 1) if which else (2, 2), padding=(0, 0) if which else (1, 1))
    storage = torch.empty(2**31 + 2**27, dtype=torch.float16, device=device)
    images, vectors = case.random(torch.float16, device)
    values = (images, vectors)[which]
    x = storage.as_strided(values.shape, stride)
    x.copy_(values)
    case.check(*((x, vectors) if which == 0 else (images, x)), (images, vectors))


@ON_EACH
@pytest.mark.parametrize("case", [CASES["2d, padding"], CHOICES["pixels"][0]], ids=str)
def test_zeros_and_the_ends_of_the_range(case, device):
    case = case._replace(n=4)
    images, vectors = case.signs(torch.float16, device)
    images[0] = 0
    vectors[1] = 0
    # Squares and products of half precision do not overflow or underflow in single.
    images[2] *= torch.finfo(torch.float16).max
    vectors[3] *= 2**-24
    assert patch_norms(images, vectors, **case.options)[:2].tolist() == [0, 0]
    case.check(images, vectors)


@ON_EACH
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES[2:] if INTERPRET else DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "case",
    [
        *(CASES[name] for name in ("1d", "2d, padding", "2d, pixels", "2d, groups")),
        *([] if INTERPRET else [cases[0] for cases in CHOICES.values()]),
    ],
    ids=str,
)
def test_what_is_not_finite_shows_and_stays_in_its_example(case, which, dtype, device):
    case = case._replace(n=6)
    tensors = case.random(dtype, device)
    x = tensors[which].flatten(1)
    x[0, 0] = x[1, -1] = x[2, 0] = math.nan
    x[2, -1] = x[3, 0] = math.inf
    x[4, -1] = -math.inf
    got = patch_norms(*tensors, **case.options)
    assert got[:3].isnan().all()
    assert not got[3:5].isfinite().any()
    case._replace(n=1).compare(got[5:], tensors[0][5:], tensors[1][5:])


@ON_EACH
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "case",
    [
        CASES["2d, stride leaves pixels out"],
        Case(2, 3, (4, 4), (2, 2), behind=(-1, 0)),
        *([] if INTERPRET else [Case(60, 60, (4, 4), (2, 2), stride=(3, 3))]),
        *([] if INTERPRET else [Case(40, 40, (7, 4), (2, 2), stride=(4, 1))]),
    ],
    ids=str,
)
def test_what_no_window_sees_does_not_matter(case, value, device):
    images, vectors = case.random(device=device)
    unseen = case.unseen(images).to(device)
    assert unseen.any()
    want = patch_norms(images, vectors, **case.options)
    for x in (images, images.contiguous(memory_format=torch.channels_last)):
        got = patch_norms(x.masked_fill(unseen, value), vectors, **case.options)
        assert torch.equal(got, want)


@ON_EACH
@pytest.mark.parametrize(
    "case",
    [
        CASES["2d, groups"],
        GRAM[torch.float32][0],
        *([] if INTERPRET else [CANCELLING[0], *(cases[0] for cases in CHOICES.values())]),
    ],
    ids=str,
)
def test_two_runs_are_bit_identical(case, device):
    images, vectors = case.random(device=device)
    if case in CANCELLING:
        images, vectors = cancelling(case, torch.float32, device)
    got = [patch_norms(images, vectors, **case.options) for _ in range(2)]
    assert torch.equal(*got)


@pytest.mark.skipif(not INTERPRET, reason="the order of the reference's sums is PyTorch's matter")
@pytest.mark.parametrize(
    "case", [Case(2, 3, (4, 5), (2, 3), padding=(0, 1)), CANCELLING[4]], ids=str
)
def test_an_example_does_not_depend_on_the_others(case):
    images, vectors = cancelling(case._replace(n=4), torch.float64, "cpu")
    order = [1, 0, 3, 2]
    got = patch_norms(images, vectors, **case.options)
    assert torch.equal(patch_norms(images[order], vectors[order], **case.options), got[order])


@ON_EACH
@pytest.mark.parametrize("case", [cases[0] for cases in CHOICES.values()], ids=str)
def test_autocast_changes_nothing(case, device):
    images, vectors = case.random(device=device)
    want = patch_norms(images, vectors, **case.options)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = patch_norms(images, vectors, **case.options)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_geometry_may_be_left_out_or_any_sequence():
    images, vectors = CASES["2d"].random()
    want = patch_norms(images, vectors, kernel_size=(3, 2))
    got = patch_norms(
        images, vectors, kernel_size=torch.Size([3, 2]), stride=[1, 1], padding=[0, 0],
        dilation=(1, 1), groups=1,
    )  # fmt: skip
    assert torch.equal(got, want)
    assert torch.equal(patch_norms(images[:, None], vectors[:, None], kernel_size=[3, 2]), want)


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.patch_norms")
    unused = "patch_norms_reference" if INTERPRET else "_patch_norms_triton"
    monkeypatch.setattr(module, unused, None)
    got = patch_norms(torch.ones(2, 2, 4, 4), torch.ones(2, 3, 2, 2), kernel_size=(3, 3))
    assert got.tolist() == [864, 864]


@ON_EACH
@pytest.mark.parametrize("name", ["2d, groups", "1d, everything", "3d"])
def test_opcheck(name, device):
    case = CASES[name]
    images, vectors = case.random(device=device)
    if case.m == 1:
        images, vectors = images[:, None], vectors[:, None]
    geometry = [*map(list, case.window), case.groups]
    torch.library.opcheck(_patch_norms_op, (images, vectors, *geometry))
    torch.library.opcheck(_patch_norms_op, (images[:0], vectors[:0], *geometry))
    torch.library.opcheck(_patch_norms_op, (images.bfloat16(), vectors.double(), *geometry))


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_meta_device(dtypes):
    images, vectors = (torch.empty(3, 4, 5, 5, dtype=dtype, device="meta") for dtype in dtypes)
    got = patch_norms(images, vectors, kernel_size=(3, 3), padding=(1, 1))
    expected = torch.float64 if torch.float64 in dtypes else torch.float32
    assert (got.shape, got.dtype, got.device.type) == ((3,), expected, "meta")


@pytest.mark.parametrize("in_dims", list(itertools.product([None, 0, 3], repeat=2)), ids=str)
def test_vmap(in_dims):
    if in_dims == (None, None):
        in_dims = (0, 0)
    case = Case(2, 4, (4, 5), (3, 2), padding=(1, 0), n=4)
    batched = [x.unflatten(0, (2, 2)) for x in case.random()]
    args = [
        x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(batched, in_dims, strict=True)
    ]

    def norms(images, vectors):
        return patch_norms(images, vectors, **case.options)

    want = []
    for i in range(2):
        one = [x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)]
        want.append(norms(one[0], one[1]))
    assert_close(vmap(norms, in_dims=in_dims)(*args), torch.stack(want))


def test_nested_vmap():
    case = Case(2, 3, (4, 5), (3, 2), n=12)

    def norms(images, vectors):
        return patch_norms(images, vectors, **case.options)

    images, vectors = (x.unflatten(0, (2, 3, 2)) for x in case.random())
    want = norms(images.flatten(0, 2), vectors.flatten(0, 2)).view(2, 3, 2)
    assert_close(vmap(vmap(norms))(images, vectors), want)
    assert_close(vmap(vmap(norms), in_dims=1)(images, vectors), want.transpose(0, 1))
    inner = vmap(norms, in_dims=(0, None))
    want = [[norms(x, v) for x in images[0]] for v in vectors[:, 1]]
    assert_close(
        vmap(inner, in_dims=(None, 0))(images[0], vectors[:, 1]),
        torch.stack([torch.stack(row) for row in want]),
    )
    assert vmap(norms)(images[:, 0, :0], vectors[:, 0, :0]).shape == (2, 0)


@ON_EACH
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(patch_norms, fullgraph=True, backend="aot_eager")
    case = CASES["2d, groups"]
    for change in ({}, {"n": 3, "spatial": (4, 5)}, {"m": 2, "padding": (2, 1)}):
        one = case._replace(**change)
        images, vectors = one.random(device=device)
        want = patch_norms(images, vectors, **one.options)
        assert torch.equal(compiled(images, vectors, **one.options), want)
    got = compiled(images.bfloat16(), vectors.double(), **one.options)
    assert torch.equal(got, patch_norms(images.bfloat16(), vectors.double(), **one.options))


X, V = torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4, 4)
PLAIN = {"kernel_size": (1, 1)}


def of_shapes(images, vectors, dims=2):
    return (
        f"images and vectors must have shapes (n, C, *spatial) and (n, O, *positions) with {dims} "
        "spatial dimensions, or both a dimension more for several images of an example, got "
        f"{tuple(images.shape)} and {tuple(vectors.shape)}"
    )


@pytest.mark.parametrize(
    ("error", "images", "vectors", "options", "message"),
    [
        *(
            (
                ValueError, X, V, options,
                "kernel_size, stride, padding and dilation must have equally many entries, 1 to 3, "
                f"got {entries}",
            )
            for options, entries in [
                ({"kernel_size": (1, 1), "stride": (1,)}, "(1, 1), (1,), (0, 0), (1, 1)"),
                ({"kernel_size": (1, 1), "padding": [0] * 3}, "(1, 1), (1, 1), (0, 0, 0), (1, 1)"),
                ({"kernel_size": (2,), "dilation": (1, 2)}, "(2,), (1,), (0,), (1, 2)"),
                ({"kernel_size": ()}, "(), (), (), ()"),
                ({"kernel_size": (1,) * 4}, f"{(1,) * 4}, {(1,) * 4}, {(0,) * 4}, {(1,) * 4}"),
            ]
        ),
        *(
            (ValueError, torch.ones(shape), torch.ones(other), PLAIN,
             of_shapes(torch.ones(shape), torch.ones(other)))
            for shape, other in [
                ((1, 2, 4, 4), (1, 3, 4)), ((1, 2, 4), (1, 3, 4, 4)), ((1, 2, 4, 4), ()),
                ((2, 2, 4, 4), (1, 3, 4, 4)), ((1, 2, 2, 4, 4), (1, 3, 4, 4)),
                ((1, 2, 4, 4), (1, 1, 3, 4, 4)), ((1, 2, 2, 4, 4), (1, 1, 2, 4, 4)), ((), ()),
                ((1, 1, 1, 2, 4, 4), (1, 1, 1, 3, 4, 4)),
            ]
        ),
        (
            ValueError, torch.ones(1, 2, 4), torch.ones(1, 2, 4, 4), {"kernel_size": (1,)},
            of_shapes(torch.ones(1, 2, 4), torch.ones(1, 2, 4, 4), 1),
        ),
        *(
            (
                ValueError, X, V, PLAIN | {"groups": groups},
                f"groups must divide the channels, 2 and 4, got {groups}",
            )
            for groups in (4, 3, 0, -1)
        ),
        *(
            (
                TypeError, X.to(dtype) if i == 0 else X, V.to(dtype) if i == 1 else V, PLAIN,
                f"{name} must be float16, bfloat16, float32 or float64, got {dtype}; pass "
                f"{name}.float()",
            )
            for dtype in (torch.int64, torch.complex64)
            for i, name in enumerate(("images", "vectors"))
        ),
        (TypeError, X, V.to("meta"), PLAIN, "vectors must be on cpu like images, got meta"),
        (TypeError, X.to("meta"), V, PLAIN, "vectors must be on meta like images, got cpu"),
    ],
)  # fmt: skip
def test_errors(error, images, vectors, options, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        patch_norms(images, vectors, **options)


def of_ones(images, vectors):
    return patch_norms(images, vectors, kernel_size=(1, 1))


@pytest.mark.parametrize(
    ("name", "derive"),
    [
        ("images", lambda x, v: jvp(lambda x: of_ones(x, v), (x,), (x,))),
        ("vectors", lambda x, v: jvp(lambda v: of_ones(x, v), (v,), (v,))),
        ("images", lambda x, v: jvp(of_ones, (x, v), (x, v))),
        ("vectors", lambda x, v: jacfwd(of_ones, argnums=1)(x, v)),
    ],
)
def test_no_forward_derivative(name, derive):
    message = f"patch_norms has no forward-mode derivative, got {name} with a tangent; pass "
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message + name)}\\.detach\\(\\)$"):
        derive(*CASES["2d, pixels"].random())


def test_detached_under_forward_differentiation():
    x = CASES["2d, pixels"].random()[0]
    value, tangent = jvp(lambda x: of_ones(x.detach(), x.detach()) + x[:, 0, 0, 0], (x,), (x,))[:2]
    assert_close(value, of_ones(x, x) + x[:, 0, 0, 0])
    assert_close(tangent, x[:, 0, 0, 0])


@pytest.mark.parametrize("which", [0, 1])
def test_no_backward_derivative(which):
    tensors = CASES["2d, pixels"].random()
    tensors[which].requires_grad_()
    norms = of_ones(*tensors)
    with pytest.raises(RuntimeError, match=r"backward through memtools.patch_norms.*no autograd"):
        norms.sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import patch_norms
        print(patch_norms(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2), kernel_size=(3, 3)))
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "tensor([864.])\n"), run.stderr
