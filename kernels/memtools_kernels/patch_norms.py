"""Operator ``memtools::patch_norms``: squared norms of the gradients of a convolution's weight.

Sums of outer products as in `outer_norms`, of which one factor is a patch of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from memtools_kernels.arguments import check_dense
from memtools_kernels.backend import (
    DTYPES,
    HAS_TRITON,
    INTERPRET,
    accumulator,
    ends_in_reference,
    without_autocast,
)
from memtools_kernels.chunks import SCRATCH, in_chunks, join, split
from memtools_kernels.outer_norms import (
    PASS,
    direct_cost,
    gram_cost,
    launch,
    lost_to_cancellation,
    outer_norms_reference,
)
from memtools_kernels.row_norms import row_norms_reference
from memtools_kernels.windows import Window

UNFOLD = 48
"""Cost of an element of a patch that is copied, in multiply-adds of a matrix product."""


# 1. Reference: the specification, and what runs wherever the kernel does not.
def patch_norms_reference(images: Tensor, vectors: Tensor, window: Window, groups: int) -> Tensor:
    """Compute `patch_norms` in plain PyTorch, for images ``(n, m, C, *spatial)``, on any device."""
    if images.numel() == 0 or vectors.numel() == 0:
        return _zeros(images, vectors)
    images, vectors = (
        x.unflatten(2, (groups, -1)).movedim(2, 1).flatten(0, 1) for x in (images, vectors)
    )
    channels, width, positions = images.shape[2], vectors.shape[2], prod(vectors.shape[3:])
    pixels, kernel = prod(images.shape[3:]), prod(window.kernel)
    patch, largest = channels * kernel, max(pixels, positions) ** 2
    direct = direct_cost(positions, width, patch)
    costs = {
        _by_kernel: direct * (_alone(kernel) if channels * width == 1 else 1),
        _by_patches: UNFOLD * patch * positions * (not window.is_pixel)
        + min(direct, gram_cost(positions, width, patch)),
    }
    if images.shape[1] == 1 and largest <= 4 * SCRATCH:
        shifts = PASS * sum(window.kernel) * largest
        costs[_by_pixels] = shifts + pixels**2 * channels + gram_cost(positions, width, 0)
    with without_autocast(images.device):
        squares = min(costs, key=lambda way: costs[way])(images, vectors, window)
    return squares if groups == 1 else squares.view(-1, groups).sum(1)


def _alone(kernel: int) -> int:
    """Cost of a multiply-add of a convolution whose channels do not mix, in the same."""
    return 12 if kernel <= 9 else 64


def _zeros(images: Tensor, vectors: Tensor) -> Tensor:
    return images.new_zeros(len(images), dtype=_accumulator(images, vectors))


def _accumulator(images: Tensor, vectors: Tensor) -> torch.dtype:
    return accumulator(torch.promote_types(images.dtype, vectors.dtype))


def _by_kernel(images: Tensor, vectors: Tensor, window: Window) -> Tensor:
    """The gradients themselves, by PyTorch's own operator: one group for each block."""
    channels, width = images.shape[2], vectors.shape[2]
    spatial = tuple(vectors.shape[3:])
    total = []
    for image, vector in in_chunks(channels * width * prod(window.kernel), images, vectors):
        x = window.pad(image.movedim(1, 0).flatten(1, 2), spatial)
        gradient = torch.ops.aten.convolution_backward(
            vector.movedim(1, 0).flatten(1, 2), x,
            x.new_empty(len(image) * width, channels, *window.kernel),
            None, window.stride, [0] * len(spatial), window.dilation,
            False, [0] * len(spatial), len(image), [False, True, False],
        )[1]  # fmt: skip
        total.append(row_norms_reference([gradient.view(len(image), -1)], 2, True))
    return join(total)


def _by_patches(images: Tensor, vectors: Tensor, window: Window) -> Tensor:
    _, repeats, channels = images.shape[:3]
    positions = tuple(vectors.shape[3:])
    each = prod(positions) * prod(window.kernel) * repeats
    # Where one block is too much, its channels go in bands: their squares add up.
    band = max(1, SCRATCH // max(1, each))
    total = []
    for image, vector in in_chunks(each * channels, images, vectors):
        rows = by_position(vector)
        bands = split(image, band, dim=2)
        columns = (patches_of(part, positions, window) for part in bands)
        total.append(sum(outer_norms_reference(rows, part) for part in columns))
    return join(total)


def _by_pixels(images: Tensor, vectors: Tensor, window: Window) -> Tensor:
    """The Gram form, from inner products of pixels: no patch is ever formed."""
    pixels, positions = tuple(images.shape[3:]), tuple(vectors.shape[3:])
    total, terms = [], []
    for image, vector in in_chunks(prod(pixels) ** 2, images, vectors):
        a, b = image.flatten(0, 1).flatten(2), vector.flatten(0, 1).flatten(2)
        products = window.sum_of_shifts(torch.bmm(a.mT, a), pixels, positions)
        products.mul_(torch.bmm(b.mT, b))
        total.append(products.flatten(1).sum(1))
        terms.append(products.diagonal(dim1=1, dim2=2).sum(1))
    squares = join(total)
    lost = lost_to_cancellation(squares, join(terms)).nonzero().flatten()
    if len(lost):
        squares[lost] = _by_patches(images[lost], vectors[lost], window)
    return squares


def patches_of(images: Tensor, positions: tuple[int, ...], window: Window) -> Tensor:
    """Patches of images ``(n, m, C, *spatial)``, ``(n, m * positions, C * kernel)``."""
    patches = window.patches(window.pad(images.flatten(0, 1), positions))
    return patches.unflatten(0, images.shape[:2]).movedim(1, 2).flatten(2).mT


def by_position(vectors: Tensor) -> Tensor:
    """``(n, m, O, *positions)`` as ``(n, m * positions, O)``."""
    return vectors.flatten(3).movedim(1, 2).flatten(2).mT


# 2. Kernels: those of `outer_norms`, which find the elements of a patch in the image.


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _patch_norms_triton(images: Tensor, vectors: Tensor, window: Window, groups: int) -> Tensor:
    if images.numel() == 0 or vectors.numel() == 0:
        return _zeros(images, vectors)
    dtype = torch.promote_types(images.dtype, vectors.dtype)
    rows = vectors.to(dtype).unflatten(2, (groups, -1)).movedim(2, 1)
    rows = rows.flatten(4).movedim(2, 3).flatten(3).mT  # (n, groups, m * positions, O / groups)
    columns = images.to(dtype).unflatten(2, (groups, -1)).movedim(2, 1)
    pad = [1] * (6 - columns.ndim + 1)
    columns = columns.reshape(*columns.shape[:4], *pad, *columns.shape[4:])
    geometry = (
        tuple(columns.shape[4:]),
        (*pad, *vectors.shape[3:]),
        (*pad, *window.kernel),
        (*pad, *window.stride),
        (*pad, *window.dilation),
        (*(0 for _ in pad), *window.padding),
    )
    c = columns.shape[3] * prod(window.kernel)
    return launch(rows, columns, c, columns.stride(), geometry).sum(1)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::patch_norms", mutates_args=(), device_types="cuda")
def _patch_norms_op(
    images: Tensor,
    vectors: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    window = Window(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    if not HAS_TRITON:
        return patch_norms_reference(images, vectors, window, groups)
    with torch.cuda.device_of(images):
        return _patch_norms_triton(images, vectors, window, groups)


@_patch_norms_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(images: Tensor, vectors: Tensor, *geometry: Any) -> Tensor:
    window = Window(*(tuple(x) for x in geometry[:4]))
    compute = _patch_norms_triton if INTERPRET else patch_norms_reference
    return compute(images, vectors, window, geometry[4])


@_patch_norms_op.register_fake
def _(images: Tensor, vectors: Tensor, *geometry: Any) -> Tensor:
    return images.new_empty(images.shape[0], dtype=_accumulator(images, vectors))


@_patch_norms_op.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], images: Tensor, vectors: Tensor, *geometry: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    images, vectors = (
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((images, vectors), in_dims, strict=False)
    )
    norms = _patch_norms_op(images.flatten(0, 1), vectors.flatten(0, 1), *geometry)
    return norms.unflatten(0, images.shape[:2]), 0


# 5. Public function.
def patch_norms(
    images: Tensor,
    vectors: Tensor,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    r"""Squared norm of each example's gradient with respect to the weight of a convolution.

    .. math:: s_i = \textstyle\sum_g \lVert \sum_t v_{igt}\, \mathrm{patch}_t(x_{ig})^\top
              \rVert_F^2

    with the patch of the image x under the window at position t, and the gradient v of the
    convolution's output there. For a transposed convolution, exchange the roles: its windows slide
    over the gradient of its output, and its input is the vectors. Gradients are never formed for
    the whole batch, on a GPU neither they nor the patches. Precision as in :func:`outer_norms`.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        images: x, ``(n, C, *spatial)`` with one to three spatial dimensions, or ``(n, m, C,
            *spatial)`` where an example has m images; float16, bfloat16, float32 or float64.
        vectors: v, ``(n, O, *positions)`` or ``(n, m, O, *positions)``, likewise.
        kernel_size: Size of the window in each spatial dimension.
        stride: How far the window moves; ``None`` is 1.
        padding: How many zeros are before an image; behind it are as many as the positions ask
            for. ``None`` is 0.
        dilation: Distance of the window's elements; ``None`` is 1.
        groups: Groups of channels, each with its own part of the weight.

    Returns:
        Tensor of shape ``(n,)``: float64 if an argument is, otherwise float32; summed in that type.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If an argument is of another dtype, or they are on two devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> images, vectors = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
        >>> patch_norms(images, vectors, kernel_size=(3, 3))  # 3 * 2 * 9 weights, 4^2 for each
        tensor([864.])
    """
    check_dense(images=images, vectors=vectors)
    dims = len(kernel_size)
    ones = (1,) * dims
    window = Window(
        tuple(kernel_size),
        ones if stride is None else tuple(stride),
        (0,) * dims if padding is None else tuple(padding),
        ones if dilation is None else tuple(dilation),
    )
    if dims not in (1, 2, 3) or any(len(entry) != dims for entry in window):
        raise ValueError(
            "kernel_size, stride, padding and dilation must have equally many entries, 1 to 3, got "
            f"{', '.join(str(entry) for entry in window)}"
        )
    names = ("kernel_size", "stride", "padding", "dilation")
    for name, entries, least in zip(names, window, (1, 1, 0, 1), strict=True):
        if any(not isinstance(entry, int) or entry < least for entry in entries):
            raise ValueError(f"{name} must hold whole numbers from {least}, got {entries}")
    several = images.ndim == dims + 3
    fits = images.ndim == vectors.ndim and images.ndim in (dims + 2, dims + 3)
    if not fits or images.shape[: 1 + several] != vectors.shape[: 1 + several]:
        raise ValueError(
            f"images and vectors must have shapes (n, C, *spatial) and (n, O, *positions) with "
            f"{dims} spatial dimensions, or both a dimension more for several images of an "
            f"example, got {tuple(images.shape)} and {tuple(vectors.shape)}"
        )
    if not several:
        images, vectors = images[:, None], vectors[:, None]
    if groups < 1 or images.shape[2] % groups or vectors.shape[2] % groups:
        raise ValueError(
            f"groups must divide the channels, {images.shape[2]} and {vectors.shape[2]}, "
            f"got {groups}"
        )
    for name, x in (("images", images), ("vectors", vectors)):
        if x.dtype not in DTYPES:
            names = "float16, bfloat16, float32 or float64"
            raise TypeError(f"{name} must be {names}, got {x.dtype}; pass {name}.float()")
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"patch_norms has no forward-mode derivative, got {name} with a tangent; pass "
                f"{name}.detach()"
            )
    if images.device != vectors.device:
        raise TypeError(f"vectors must be on {images.device} like images, got {vectors.device}")
    if ends_in_reference(images, vectors):
        return patch_norms_reference(images, vectors, window, groups)
    return _patch_norms_op(images, vectors, *window, groups)
