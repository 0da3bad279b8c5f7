"""Operator ``memtools::outer_norms``: squared norms of sums of outer products, never formed.

The gradient of a linear layer's weight is such a sum over the positions of an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
    jit,
    precision,
    without_autocast,
)
from memtools_kernels.chunks import SCRATCH, in_chunks, join, split
from memtools_kernels.row_norms import row_norms_reference

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

PASS = 16
"""Cost of an element that is written and read again, in multiply-adds of a matrix product."""


# 1. Reference: the specification, and what runs wherever the kernel does not.
def outer_norms_reference(rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `outer_norms` in plain PyTorch, on any device."""
    _, positions, r = rows.shape
    c = columns.shape[2]
    if rows.numel() == 0 or columns.numel() == 0:
        return _zeros(rows, columns)
    if positions == 1:
        dtype = _accumulator(rows, columns)
        of_rows = row_norms_reference([rows.to(dtype)], 2, True)
        return of_rows * row_norms_reference([columns.to(dtype)], 2, True)
    with without_autocast(rows.device):
        if direct_cost(positions, r, c) <= gram_cost(positions, r, c):
            return _direct(rows, columns)
        return _gram(rows, columns)


def direct_cost(positions: int, r: int, c: int) -> int:
    """Of forming the sums of one example, ``(R, C)``, and their norm, in multiply-adds."""
    return (positions + PASS) * r * c


def gram_cost(positions: int, r: int, c: int) -> int:
    """Of forming all inner products of rows, and of columns, of one example, in multiply-adds."""
    # Products of few rows keep the processor less busy than those of many.
    return (r + c + 2 * PASS) * positions**2 * 7 // 5


def lost_to_cancellation(squares: Tensor, diagonals: Tensor) -> Tensor:
    """Which sums of products are too small beside their diagonals to be trusted.

    The matrix of products is positive semi-definite, so that its entries' rounding errors add up to
    less than about eps times its trace. Below an eighth of the trace, three bits of the sum are
    lost.
    """
    return squares < diagonals / 8


def _zeros(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.new_zeros(len(rows), dtype=_accumulator(rows, columns))


def _accumulator(rows: Tensor, columns: Tensor) -> torch.dtype:
    return accumulator(torch.promote_types(rows.dtype, columns.dtype))


def _direct(rows: Tensor, columns: Tensor) -> Tensor:
    r, c = rows.shape[2], columns.shape[2]
    band = max(1, SCRATCH // max(1, c))
    total = []
    for row, column in in_chunks(r * c, rows, columns):
        bands = (torch.bmm(part.mT, column) for part in split(row, band, dim=2))
        total.append(sum(row_norms_reference([b], 2, True) for b in bands))
    return join(total)


def _gram(rows: Tensor, columns: Tensor) -> Tensor:
    positions = rows.shape[1]
    band = max(1, SCRATCH // positions)
    total, terms = [], []
    for row, column in in_chunks(positions**2, rows, columns):
        sums, diagonals = 0, 0
        for start in range(0, positions, band):
            stop = start + band
            products = torch.bmm(row[:, start:stop], row.mT)
            products.mul_(torch.bmm(column[:, start:stop], column.mT))
            sums = sums + products.flatten(1).sum(1)
            diagonals = diagonals + products.diagonal(start, dim1=1, dim2=2).sum(1)
        total.append(sums)
        terms.append(diagonals)
    squares, terms = join(total), join(terms)
    lost = lost_to_cancellation(squares, terms).nonzero().flatten()
    if len(lost):
        squares[lost] = _direct(rows[lost], columns[lost])
    return squares


# 2. Kernels. A program owns a tile of the sum of one example, and adds up its outer products.
@jit
def _direct_kernel(
    rows_ptr, columns_ptr, parts_ptr, squares_ptr, traces_ptr, positions, r, c, groups, n_tiles,
    c_tiles, row_strides, column_strides, window,
    R: tl.constexpr, C: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    block, tile = program // n_tiles, program % n_tiles
    is_wanted = True
    if squares_ptr is not None:  # what the other form has lost to cancellation
        is_wanted = tl.load(squares_ptr + block) < tl.load(traces_ptr + block) / 8
    if is_wanted:
        kind = parts_ptr.dtype.element_ty
        rows_ptr += block // groups * row_strides[0] + block % groups * row_strides[1]
        columns_ptr += block // groups * column_strides[0] + block % groups * column_strides[1]
        in_row = (tile // c_tiles * R + tl.arange(0, R)).to(INDEX)
        in_column = (tile % c_tiles * C + tl.arange(0, C)).to(INDEX)
        total = tl.zeros((R, C), kind)
        for start in range(0, positions, T):
            t = (start + tl.arange(0, T)).to(INDEX)
            a = _of_rows(rows_ptr, t, in_row, positions, r, row_strides)
            b = _of_columns(columns_ptr, t, in_column, positions, c, column_strides, window)
            if UPCAST:
                a, b = a.to(kind), b.to(kind)
            total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION, out_dtype=kind)
        # Beyond the edges, infinity times the zeros there is NaN.
        mask = (in_row < r)[:, None] & (in_column < c)[None, :]
        tl.store(parts_ptr + program, tl.sum(tl.where(mask, total * total, 0.0)))


# A program owns a tile of the inner products of the positions of one example, below the diagonal.
@jit
def _gram_kernel(
    rows_ptr, columns_ptr, parts_ptr, traces_ptr, positions, r, c, groups, n_tiles,
    row_strides, column_strides, window,
    T: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    block, tile = program // (n_tiles * n_tiles), program % (n_tiles * n_tiles)
    i, j = tile // n_tiles, tile % n_tiles
    if i >= j:
        kind = parts_ptr.dtype.element_ty
        rows_ptr += block // groups * row_strides[0] + block % groups * row_strides[1]
        columns_ptr += block // groups * column_strides[0] + block % groups * column_strides[1]
        t = (i * T + tl.arange(0, T)).to(INDEX)
        u = (j * T + tl.arange(0, T)).to(INDEX)
        products = tl.zeros((T, T), kind)
        for start in range(0, r, K):
            k = (start + tl.arange(0, K)).to(INDEX)
            a = _of_rows(rows_ptr, t, k, positions, r, row_strides)
            b = _of_rows(rows_ptr, u, k, positions, r, row_strides)
            if UPCAST:
                a, b = a.to(kind), b.to(kind)
            products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION, out_dtype=kind)
        others = tl.zeros((T, T), kind)
        for start in range(0, c, K):
            k = (start + tl.arange(0, K)).to(INDEX)
            a = _of_columns(columns_ptr, t, k, positions, c, column_strides, window)
            b = _of_columns(columns_ptr, u, k, positions, c, column_strides, window)
            if UPCAST:
                a, b = a.to(kind), b.to(kind)
            others = tl.dot(a, tl.trans(b), others, input_precision=PRECISION, out_dtype=kind)
        mask = (t < positions)[:, None] & (u < positions)[None, :]
        products = tl.where(mask, products * others, 0.0)
        twice = tl.where(i > j, 2.0, 1.0).to(kind)
        tl.store(parts_ptr + program, twice * tl.sum(products))
        on_diagonal = tl.where(t[:, None] == u[None, :], products, 0.0)
        tl.store(traces_ptr + program, tl.sum(on_diagonal))
    else:
        tl.store(parts_ptr + program, 0.0)
        tl.store(traces_ptr + program, 0.0)


@jit
def _of_rows(ptr, t, k, positions, size, strides):
    mask = (t < positions)[:, None] & (k < size)[None, :]
    offsets = t[:, None] * strides[2] + k[None, :] * strides[3]
    return tl.load(ptr + offsets, mask=mask, other=0.0)


@jit
def _of_columns(ptr, t, k, positions, size, strides, window):
    if window is None:
        block = _of_rows(ptr, t, k, positions, size, strides)
    else:
        # Element k of the patch at position t: where each of them begins, and how far in it is.
        mask = (t < positions)[:, None] & (k < size)[None, :]
        pixels, counts, kernel, step, dilation, margin = window
        x = t % counts[2] * step[2] - margin[2]
        y = t // counts[2] % counts[1] * step[1] - margin[1]
        z = t // (counts[2] * counts[1]) % counts[0] * step[0] - margin[0]
        image = t // (counts[2] * counts[1] * counts[0])
        begin = image * strides[2] + z * strides[4] + y * strides[5] + x * strides[6]
        by_x = k % kernel[2] * dilation[2]
        by_y = k // kernel[2] % kernel[1] * dilation[1]
        by_z = k // (kernel[2] * kernel[1]) % kernel[0] * dilation[0]
        channel = k // (kernel[2] * kernel[1] * kernel[0])
        inside = channel * strides[3] + by_z * strides[4] + by_y * strides[5] + by_x * strides[6]
        x, y, z = (
            (x[:, None] + by_x[None, :]),
            (y[:, None] + by_y[None, :]),
            z[:, None] + by_z[None, :],
        )
        mask &= (x >= 0) & (x < pixels[2]) & (y >= 0) & (y < pixels[1]) & (z >= 0) & (z < pixels[0])
        block = tl.load(ptr + begin[:, None] + inside[None, :], mask=mask, other=0.0)
    return block


@jit
def _is_inside(begin, by, size):
    place = begin[:, None] + by[None, :]
    return (place >= 0) & (place < size)


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _outer_norms_triton(rows: Tensor, columns: Tensor) -> Tensor:
    if rows.numel() == 0 or columns.numel() == 0:
        return _zeros(rows, columns)
    n, _, c = columns.shape
    dtype = torch.promote_types(rows.dtype, columns.dtype)
    rows, columns = rows.to(dtype)[:, None], columns.to(dtype)[:, None]
    return launch(rows, columns, c, columns.stride(), None).view(n)


def launch(
    rows: Tensor, columns: Tensor, c: int, column_strides: tuple[int, ...], window: Any
) -> Tensor:
    """Squared norms for rows ``(n, groups, T, R)``, shape ``(n, groups)``, by the cheaper form.

    Args:
        rows: The rows.
        columns: Where the columns are, of the dtype of the rows.
        c: Size of a column.
        column_strides: Of example, group, position and element; with a window, of example, group,
            image, channel and three dimensions of a pixel.
        window: ``None``, or what of the images the columns are: pixels, positions, kernel, steps,
            dilation and margin, each for three dimensions.
    """
    n, groups, positions, r = rows.shape
    data = _Data(rows, columns, c, rows.stride(), column_strides, window)
    how = precision(rows.dtype, rows.device) | {"INDEX": _index_type(rows, columns)}
    # Multiply-adds of whole tiles, of which the second form needs those below the diagonal alone.
    tile = 32 if rows.dtype == torch.float64 else 64
    n_tiles = triton.cdiv(positions, tile)
    if positions * r * c <= tile**2 * n_tiles * (n_tiles + 1) // 2 * (r + c):
        return _launch_direct(data, how, None, None).view(n, groups)
    shape = 2, n * groups, n_tiles**2
    parts, traces = rows.new_empty(shape, dtype=accumulator(rows.dtype))
    args: list[Any] = [rows, columns, parts, traces, positions, r, c, groups, n_tiles, *data[3:]]
    meta: dict[str, Any] = {"T": tile, "K": 16 if rows.dtype == torch.float64 else 32}
    meta |= how | {"num_warps": 4}
    _gram_kernel[(parts.numel(),)](*args, **meta)
    squares, traces = parts.sum(1), traces.sum(1)
    # Without a look at which are lost: that would make the processor wait for the GPU.
    direct = _launch_direct(data, how, squares, traces)
    return torch.where(lost_to_cancellation(squares, traces), direct, squares).view(n, groups)


class _Data(NamedTuple):
    rows: Tensor
    columns: Tensor
    c: int
    row_strides: tuple[int, ...]
    column_strides: tuple[int, ...]
    window: Any


def _index_type(*tensors: Tensor) -> Any:
    """Of the place of an element within its example."""
    spans = [
        sum((m - 1) * s for m, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in tensors
    ]
    return tl.int64 if max(spans) >= 2**30 else tl.int32


def _launch_direct(
    data: _Data, how: dict[str, Any], squares: Tensor | None, traces: Tensor | None
) -> Tensor:
    rows, c = data.rows, data.c
    n, groups, positions, r = rows.shape
    largest, block_t = {8: (32, 16), 4: (64, 32), 2: (128, 32)}[rows.element_size()]
    block_t = block_t if data.window is None else 16  # where to find a patch takes registers too
    block_r, block_c = (max(16, min(triton.next_power_of_2(x), largest)) for x in (r, c))
    c_tiles = triton.cdiv(c, block_c)
    n_tiles = triton.cdiv(r, block_r) * c_tiles
    parts = rows.new_empty((n * groups, n_tiles), dtype=accumulator(rows.dtype))
    args: list[Any] = [
        rows, data.columns, parts, squares, traces, positions, r, c, groups, n_tiles, c_tiles,
        *data[3:],
    ]  # fmt: skip
    meta: dict[str, Any] = {"R": block_r, "C": block_c, "T": block_t}
    meta |= how
    # Where to find a patch takes registers, of which more warps have more.
    most = 64 * 64 if data.window is None else 32 * 64
    meta["num_warps"] = 8 if block_r * block_c > most else 4
    _direct_kernel[(parts.numel(),)](*args, **meta)
    return parts.sum(1)


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::outer_norms", mutates_args=(), device_types="cuda")
def _outer_norms_op(rows: Tensor, columns: Tensor) -> Tensor:
    if not HAS_TRITON:
        return outer_norms_reference(rows, columns)
    with torch.cuda.device_of(rows):
        return _outer_norms_triton(rows, columns)


@_outer_norms_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(rows: Tensor, columns: Tensor) -> Tensor:
    return (_outer_norms_triton if INTERPRET else outer_norms_reference)(rows, columns)


@_outer_norms_op.register_fake
def _(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=_accumulator(rows, columns))


@_outer_norms_op.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], rows: Tensor, columns: Tensor
) -> tuple[Tensor, int]:
    size = info.batch_size
    rows, columns = (
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((rows, columns), in_dims, strict=True)
    )
    return _outer_norms_op(rows.flatten(0, 1), columns.flatten(0, 1)).unflatten(
        0, rows.shape[:2]
    ), 0


# 5. Public function.
def outer_norms(rows: Tensor, columns: Tensor) -> Tensor:
    r"""Squared Frobenius norm of each example's sum of outer products.

    .. math:: s_i = \lVert \sum_t r_{it} c_{it}^\top \rVert_F^2
                  = \sum_{tu} (r_{it} \cdot r_{iu}) (c_{it} \cdot c_{iu})

    With the gradients of a linear layer's output for r and its input for c, this is the squared
    norm of the gradient of its weight. The first form costs ``T R C`` multiply-adds, the second,
    of inner products, ``T^2 (R + C)``; the cheaper one is taken, and neither is ever in memory as a
    whole. The second cancels where the sum is far smaller than its terms; examples for which that
    would cost digits are redone by the first.

    On a GPU, float32 is multiplied as ``torch.get_float32_matmul_precision`` says. The squares of
    either factor have to fit the dtype of the result, even where those of the sum would: in
    float32, elements below 1e-19 lose precision, below 1e-23 they count as 0, beyond 1.8e19 the
    result may be infinite or NaN. Pass ``rows.double()`` if that matters.

    Not differentiable: meant for the outputs of ``torch.func`` transforms, not for their inside.

    Args:
        rows: r, ``(n, T, R)``, float16, bfloat16, float32 or float64, of any strides.
        columns: c, ``(n, T, C)``, likewise.

    Returns:
        Tensor of shape ``(n,)``: float64 if an argument is, otherwise float32; summed in that type.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If an argument is of another dtype, or they are on two devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> rows = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one example, two positions
        >>> outer_norms(rows, torch.ones(1, 2, 3))  # 3 times (1 + 3)^2 + (2 + 4)^2
        tensor([156.])
    """
    check_dense(rows=rows, columns=columns)
    if rows.ndim != 3 or columns.ndim != 3 or rows.shape[:2] != columns.shape[:2]:
        raise ValueError(
            "rows and columns must have shapes (n, T, R) and (n, T, C), got "
            f"{tuple(rows.shape)} and {tuple(columns.shape)}"
        )
    for name, x in (("rows", rows), ("columns", columns)):
        if x.dtype not in DTYPES:
            names = "float16, bfloat16, float32 or float64"
            raise TypeError(f"{name} must be {names}, got {x.dtype}; pass {name}.float()")
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"outer_norms has no forward-mode derivative, got {name} with a tangent; pass "
                f"{name}.detach()"
            )
    if rows.device != columns.device:
        raise TypeError(f"columns must be on {rows.device} like rows, got {columns.device}")
    run = outer_norms_reference if ends_in_reference(rows, columns) else _outer_norms_op
    return run(rows, columns)
