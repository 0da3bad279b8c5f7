"""`outer_norms` against float64, example by example, on the reference or the interpreted kernels.

TRITON_INTERPRET=1 in the environment chooses the kernels; test_interpreter.py runs this file so.
"""

import importlib
import itertools
import math
import re
import subprocess
import sys

import pytest
import torch
from memtools_kernels import outer_norms
from memtools_kernels.chunks import SCRATCH
from memtools_kernels.outer_norms import INTERPRET, _direct, _gram, _outer_norms_op
from torch.func import grad, jacfwd, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ON_EACH = pytest.mark.parametrize("device", DEVICES)

# (n, T, R, C). Tiles of R and C are 128, 64 or 32 wide by dtype, and 16 for few; steps of T are 32
# or 16 long. Of the inner products, tiles are 64 or 32 wide, and steps of R and C 32 or 16 long.
NOTHING = [(0, 5, 3, 4), (3, 0, 4, 5), (3, 4, 0, 5), (3, 4, 5, 0), (0, 1, 3, 4), (0, 0, 0, 0)]
ONE_POSITION = [(1, 1, 1, 1), (3, 1, 7, 131), (1, 1, 1, 2053)]
DIRECT = [
    (1, 2, 1, 1), (3, 7, 1, 5), (3, 7, 5, 1), (2, 401, 1, 1), (2, 15, 15, 2), (2, 16, 16, 2),
    (2, 17, 17, 2), (2, 31, 2, 31), (2, 32, 2, 32), (2, 33, 2, 33), (1, 40, 63, 5), (1, 40, 64, 5),
    (1, 40, 65, 5), (1, 40, 5, 127), (1, 40, 5, 128), (1, 40, 5, 129), (1, 67, 67, 131),
]  # fmt: skip
BY_EITHER = [(1, 2, 9, 11), (3, 5, 33, 40)]  # the costs differ by device
LARGE = [(2, 63, 160, 170), (1, 64, 160, 170), (1, 65, 400, 390)]
SMALL = [(2, 31, 85, 90), (1, 32, 80, 84), (1, 33, 190, 200)]


def gram(dtype):
    """Shapes for the form of inner products, about the edges of its tiles."""
    return SMALL if dtype == torch.float64 else LARGE


def one_gram(dtype, n):
    return n, *gram(dtype)[0][1:]


def module():
    return importlib.import_module("memtools_kernels.outer_norms")


def epsilon(*tensors):
    """Of the type to sum in."""
    wide = any(x.dtype == torch.float64 for x in tensors)
    return torch.finfo(torch.float64 if wide else torch.float32).eps


def exact(rows, columns):
    """Squared norms of sums of products, and of sums of their sizes."""
    examples = list(zip(rows.double().cpu(), columns.double().cpu(), strict=True))
    squares = [(r.mT @ c).square().sum() for r, c in examples]
    sizes = [(r.abs().mT @ c.abs()).square().sum() for r, c in examples]
    empty = torch.zeros(0, dtype=torch.float64)
    return (torch.stack(squares), torch.stack(sizes)) if examples else (empty, empty)


def diagonal(rows, columns):
    """Squared norms of single products, added up: the trace of the products of inner products."""
    return (rows.double().square().sum(2) * columns.double().square().sum(2)).sum(1).cpu()


def allowed(rows, columns):
    """How far off a result may be, of each example.

    A sum is off by at most depth * eps / 2 of the sum of its terms' sizes, where depth counts the
    roundings that one term goes through. With the sum of products G and M, that of their sizes:

    - First form: each of T products is rounded and added to T - 1 others, so that G is off by
      E <= T eps / 2 M, and its squared norm by 2 |G| |E| + |E|^2. Its squares are added one by one
      at worst, in runs of 1024, then those of 1024 runs, and so on: 3 levels (see test_row_norms).
    - Second form: inner products of R and C elements, their product, its place in torch.sum (128
      roundings at most, see there); the sizes of its terms add up to |M|^2 at most. What is less
      than an eighth of the diagonal is redone by the first; here, a ninth, for rounding.

    Twice that, since float64 rounds here too.
    """
    _, positions, r = rows.shape
    c = columns.shape[2]
    half = epsilon(rows, columns) / 2
    squares, sizes = exact(rows, columns)
    off = positions * half * sizes.sqrt()
    error = 2 * squares.sqrt() * off + off**2 + min(r * c, 3 * 1025) * half * squares
    kept = squares >= diagonal(rows, columns) / 9
    return 2 * (error + kept * (r + c + 128) * half * sizes)


def random(shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(math.prod(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def pair(shape, dtype=torch.float32, device="cpu"):
    n, positions, r, c = shape
    rows = random((n, positions, r), dtype, device)
    return rows, random((n, positions, c), dtype, device, seed=1)


def signs(shape, dtype=torch.float32, device="cpu"):
    """Rows and columns of -1, 0 and 1: all sums are exact."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    n, positions, *sizes = shape
    rows, columns = (
        torch.randint(-1, 2, (n, positions, size), generator=generator).to(device, dtype)
        for size in sizes
    )
    return rows, columns


def fenced(x):
    """The same values amid NaN, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], math.nan)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


def check(rows, columns, values=None, compute=outer_norms):
    """Compare with float64 what comes of ``values`` in some memory layout."""
    before = rows.clone(), columns.clone()
    got = compute(rows, columns)
    wide = torch.float64 in (rows.dtype, columns.dtype)
    assert got.dtype == (torch.float64 if wide else torch.float32)
    assert got.device == rows.device
    assert got.shape == rows.shape[:1]
    values = values or (rows, columns)
    off = (got.cpu().double() - exact(*values)[0]).abs()
    assert (off <= allowed(*values)).all(), off / exact(*values)[0]
    assert torch.equal(rows, before[0])
    assert torch.equal(columns, before[1])


@ON_EACH
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (dtype, shape)
        for dtype in DTYPES
        for shape in NOTHING + ONE_POSITION + DIRECT + BY_EITHER + gram(dtype)
    ]
    + [(torch.float32, (1, 129, 410, 430)), (torch.float64, (1, 65, 200, 210))],
    ids=str,
)
def test_exact_sums(dtype, shape, device):
    # Integers below 2^24 are exact in any order. The reference takes roots, of runs of 1024 squares
    # and of those: 2 eps for each of three levels and for the product at one position, and half an
    # eps for adding a run. A single element that is left out makes more of a difference.
    rows, columns = signs(shape, dtype, device)
    squares, _ = exact(rows, columns)
    assert (diagonal(rows, columns) < 2**24).all()
    got = outer_norms(fenced(rows), fenced(columns))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == (shape[0],)
    tolerance = (8 + shape[2] * shape[3] / 2048) * epsilon(rows)
    assert_close(got.cpu().double(), squares, rtol=tolerance, atol=0)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 1, 7, 131), (2, 2, 1, 1), (3, 7, 1, 5), (2, 331, 5, 7), (1, 40, 65, 33), None]
)
def test_random_values(shape, dtype, device):
    rows, columns = pair(shape or one_gram(dtype, 3), dtype, device)
    check(fenced(rows), fenced(columns), (rows, columns))


@ON_EACH
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 20, 30), (3, 7, 5, 3), (1, 63, 160, 170)], ids=str)
def test_mixed_dtypes(shape, dtypes, device):
    rows, columns = (x.to(dtype) for x, dtype in zip(pair(shape), dtypes, strict=True))
    check(rows.to(device), columns.to(device))


@ON_EACH
@pytest.mark.parametrize("shape", [(3, 1, 20, 30), (3, 7, 5, 3), (2, 63, 160, 170)], ids=str)
def test_float64_is_not_rounded_to_float32(shape, device):
    rows, columns = pair(shape, torch.float64, device)
    assert_close(outer_norms(rows, columns).cpu(), exact(rows, columns)[0], rtol=1e-12, atol=0)


def cancelling(dtype, device, sizes=None):
    """Ordinary examples, and between them such that cancel, which have odd numbers."""
    sizes = sizes or {torch.float64: (30, 80, 84)}.get(dtype, (63, 160, 170))
    rows, columns = pair((6, *sizes), torch.float64)
    # Rows sum to zero, columns have a common offset that leaves them a third of their digits.
    rows[1] -= rows[1].mean(0)
    columns[1] += torch.finfo(dtype).eps ** -0.7
    # All cancels: three rows sum to exactly zero, and the columns at these positions are equal.
    a, b = (rows[3, start::3].mul(16).round().clamp(-60, 60) for start in (0, 1))
    rows[3] = torch.stack([a, b, -a - b], 1).flatten(0, 1) / 16
    columns[3] = columns[3, :1]
    # Likewise, but for some digits, and far larger than the ordinary examples.
    rows[5], columns[5] = 64 * rows[3], columns[3]
    rows[5, -1] *= 1 + 2**-7
    return rows.to(device, dtype), columns.to(device, dtype)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cancelling_sums_are_as_good_as_formed_ones(dtype, device):
    rows, columns = cancelling(dtype, device)
    check(rows, columns)
    for i in range(2):  # none are redone, or all
        check(rows[i : i + 1], columns[i : i + 1])
    # Without the second look some would be off.
    wide = rows.cpu().to(torch.promote_types(dtype, torch.float32))
    inner = wide @ wide.mT
    wide = columns.cpu().to(wide.dtype)
    off = ((inner * (wide @ wide.mT)).sum((1, 2)).double() - exact(rows, columns)[0]).abs()
    assert (off > allowed(rows, columns))[1::2].any()


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cancelling_sums_of_the_direct_form(dtype, device):
    check(*cancelling(dtype, device, (9, 2, 3)))


def forms(dtype):
    return {"_direct": DIRECT[-3:], "_gram": gram(dtype)[:2]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["_direct", "_gram"])
def test_which_form_is_taken(form, dtype, monkeypatch):
    monkeypatch.setattr(module(), form + "_kernel" * INTERPRET, None)
    for shape in forms(dtype)[form]:
        with pytest.raises(TypeError, match="NoneType"):
            outer_norms(*signs(shape, dtype))
    # The kernel of the direct form is launched in any case: it looks itself what it has to redo.
    if form == "_gram" or not INTERPRET:
        (others,) = forms(dtype).keys() - {form}
        for shape in forms(dtype)[others]:
            check(*signs(shape, dtype))


@pytest.mark.skipif(INTERPRET, reason="chunks and bands are a matter of the reference")
@pytest.mark.parametrize(
    ("compute", "shape"),
    [
        (_direct, (63, 3, 128, 128)), (_direct, (64, 3, 128, 128)), (_direct, (65, 3, 128, 128)),
        (_direct, (3, 2, 3, SCRATCH)),
        (_direct, (2, 2, 3, SCRATCH + 1)), (_direct, (2, 3, 1200, 900)),
        (_gram, (1025, 32, 3, 2)), (_gram, (1024, 32, 3, 2)), (_gram, (1, 1024, 2, 3)),
        (_gram, (3, 1025, 2, 3)), (_gram, (1, 2500, 1, 2)),
        (outer_norms, (2, 6, 2, SCRATCH + 5)), (outer_norms, (700, 40, 100, 100)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_chunks_and_bands_of_the_reference(compute, shape):
    check(*pair(shape), compute=compute)


@pytest.mark.skipif(INTERPRET, reason="chunks are a matter of the reference")
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float64,) * 2], ids=str)
def test_what_cancels_is_redone_in_every_chunk(dtypes):
    rows, columns = (x.repeat(40, 1, 1) for x in cancelling(torch.float32, "cpu"))
    assert len(rows) // 2 * rows.shape[2] * columns.shape[2] > SCRATCH
    check(rows.to(dtypes[0]), columns.to(dtypes[1]), compute=_gram)


@pytest.mark.skipif(INTERPRET, reason="bands are a matter of the reference")
def test_what_cancels_is_redone_in_whichever_band_it_is():
    values = rows, columns = cancelling(torch.float32, "cpu", (30, 3, 4))
    for behind in (0, 900, 1970):  # 2000 positions take several bands
        pads = (0, 0, 1970 - behind, behind)
        check(F.pad(rows, pads), F.pad(columns, pads), values, compute=_gram)


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "transposed, fenced": lambda x: fenced(x.mT).mT,
    "examples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "positions first, fenced": lambda x: fenced(x.movedim(1, 0)).movedim(0, 1),
    "every other element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other position": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other example": lambda x: x.repeat_interleave(2, 0)[::2],
}


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(5, 1, 7, 9), (3, 40, 17, 33), (1, 63, 160, 170)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, shape, dtype, device):
    rows, columns = pair(shape, dtype, device)
    change = LAYOUTS[layout]
    check(change(rows), change(columns), (rows, columns))


@ON_EACH
@pytest.mark.parametrize("shape", [(3, 1, 6, 7), (3, 40, 6, 7), (1, 63, 160, 170)], ids=str)
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_expanded(dims, shape, device):
    rows, columns = pair(shape, device=device)
    flat = rows[tuple(slice(0, 1) if d in dims else slice(None) for d in range(3))]
    check(flat.expand(rows.shape), columns)
    flat = columns[tuple(slice(0, 1) if d in dims else slice(None) for d in range(3))]
    check(rows, flat.expand(columns.shape))


@ON_EACH
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((3, 4, 5), (2**30, 5, 1)), ((1, 3, 5), (1, 2**30, 1)), ((1, 2, 3), (1, 1, 2**30)),
        ((1, 1, 3), (1, 1, 2**30)), ((1, 64, 140), (1, 2**25 + 2**20, 1)),
    ],
)  # fmt: skip
def test_offsets_beyond_32_bits(shape, stride, which, device):
    # 5 GB of address space, of which a few pages are touched.
    storage = torch.empty(2**31 + 2**27, dtype=torch.float16, device=device)
    x = storage.as_strided(shape, stride)
    values = random(shape, x.dtype, device)
    x.copy_(values)
    other = random((*shape[:2], shape[2] + 3), x.dtype, device, seed=1)
    pairs = [(x, other), (values, other)] if which == 0 else [(other, x), (other, values)]
    check(*pairs[0], pairs[1])


@ON_EACH
@pytest.mark.parametrize("shape", [(4, 1, 6, 7), (4, 9, 6, 7), (4, 63, 160, 170)], ids=str)
def test_zeros_and_the_ends_of_the_range(shape, device):
    rows, columns = signs(shape, torch.float16, device)
    rows[0] = 0
    columns[1] = 0
    # Squares and products of half precision do not overflow or underflow in single.
    largest, smallest = torch.finfo(torch.float16).max, 2**-24
    columns[2] *= largest
    rows[3] *= smallest
    got = outer_norms(rows, columns)
    assert got[:2].tolist() == [0, 0]
    check(rows, columns)


@ON_EACH
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("sizes", [(1, 20, 1), (1, 6, 7), (9, 6, 7), None])
def test_what_is_not_finite_shows_and_stays_in_its_example(sizes, which, dtype, device):
    tensors = pair((7, *sizes) if sizes else one_gram(dtype, 7), dtype, device)
    x = tensors[which]
    x[0, 0, 0] = x[1, -1, -1] = math.nan
    x[2, 0, 0], x[2, -1, -1] = math.nan, math.inf
    x[3, 0, -1] = math.inf
    x[4, -1, 0] = -math.inf
    tensors[1 - which][5] = 0
    x[5, -1, -1] = math.inf
    got = outer_norms(*tensors)
    assert got[:2].isnan().all()
    assert not got[2:6].isfinite().any()
    ordinary = [t[6:] for t in tensors]
    off = (got[6:].cpu().double() - exact(*ordinary)[0]).abs()
    assert (off <= allowed(*ordinary)).all()


@ON_EACH
@pytest.mark.parametrize("shape", [(3, 1, 20, 30), (3, 70, 40, 50), (2, 63, 160, 170)], ids=str)
def test_two_runs_are_bit_identical(shape, device):
    rows, columns = pair(shape, device=device)
    if shape[1] == 63:
        rows, columns = (x[:2] for x in cancelling(torch.float32, device))
    assert torch.equal(outer_norms(rows, columns), outer_norms(rows, columns))


@pytest.mark.skipif(not INTERPRET, reason="the order of the reference's sums is PyTorch's matter")
@pytest.mark.parametrize("shape", [(6, 1, 20, 30), (6, 70, 40, 50), (6, 63, 160, 170)], ids=str)
def test_an_example_does_not_depend_on_the_others(shape):
    rows, columns = pair(shape)
    if shape[1] == 63:
        rows, columns = cancelling(torch.float32, "cpu")
    order = [4, 1, 5, 0, 3, 2]
    got = outer_norms(rows, columns)
    assert torch.equal(outer_norms(rows[order], columns[order]), got[order])
    assert torch.equal(outer_norms(rows[2:4], columns[2:4]), got[2:4])


@ON_EACH
def test_gradients_of_a_linear_layer(device):
    layer = torch.nn.Linear(9, 4, dtype=torch.float64, device=device)
    inputs = random((3, 7, 9), torch.float64, device)
    outputs = layer(inputs)
    (gradients,) = torch.autograd.grad(outputs.sin().sum(), outputs, retain_graph=True)
    want = []
    for output in outputs:
        (gradient,) = torch.autograd.grad(output.sin().sum(), layer.weight, retain_graph=True)
        want.append(gradient.square().sum())
    assert_close(outer_norms(gradients, inputs), torch.stack(want), rtol=1e-12, atol=0)


@ON_EACH
@pytest.mark.parametrize("shape", [(3, 9, 6, 7), (2, 30, 100, 100)], ids=str)
def test_autocast_changes_nothing(shape, device):
    rows, columns = pair(shape, device=device)
    want = outer_norms(rows, columns)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = outer_norms(rows, columns)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_which_code_runs_on_the_cpu(monkeypatch):
    unused = "outer_norms_reference" if INTERPRET else "_outer_norms_triton"
    monkeypatch.setattr(module(), unused, None)
    assert outer_norms(torch.ones(2, 3, 4), torch.ones(2, 3, 5)).tolist() == [180, 180]


@ON_EACH
@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 6), (3, 1, 5, 6), (0, 4, 5, 6), (3, 0, 5, 6), (2, 5, 33, 40)], ids=str
)
def test_opcheck(shape, device):
    rows, columns = pair(shape, device=device)
    torch.library.opcheck(_outer_norms_op, (rows, columns))
    torch.library.opcheck(_outer_norms_op, (rows.bfloat16(), columns.double()))
    torch.library.opcheck(_outer_norms_op, (rows.half().mT.contiguous().mT, columns.bfloat16()))


@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_meta_device(dtypes):
    rows, columns = (torch.empty(3, 4, 5, dtype=dtype, device="meta") for dtype in dtypes)
    got = outer_norms(rows, columns)
    expected = torch.float64 if torch.float64 in dtypes else torch.float32
    assert (got.shape, got.dtype, got.device.type) == ((3,), expected, "meta")


@pytest.mark.parametrize("in_dims", list(itertools.product([None, 0, 1, 3], repeat=2)), ids=str)
def test_vmap(in_dims):
    if in_dims == (None, None):
        in_dims = (0, 0)
    rows, columns = random((2, 3, 4, 5)), random((2, 3, 4, 6))
    args = [
        x[0] if dim is None else x.movedim(0, dim)
        for x, dim in zip((rows, columns), in_dims, strict=True)
    ]
    want = []
    for i in range(2):
        one = [x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)]
        want.append(outer_norms(one[0], one[1]))
    assert_close(vmap(outer_norms, in_dims=in_dims)(*args), torch.stack(want))


def test_nested_vmap():
    rows, columns = random((2, 3, 4, 5, 6)), random((2, 3, 4, 5, 7))
    want = torch.stack(
        [
            torch.stack([outer_norms(r, c) for r, c in zip(rs, cs, strict=True)])
            for rs, cs in zip(rows, columns, strict=True)
        ]
    )
    assert_close(vmap(vmap(outer_norms))(rows, columns), want)
    inner = vmap(outer_norms, in_dims=(0, None))
    assert_close(
        vmap(inner, in_dims=(None, 0))(rows[0], columns[:, 1]),
        torch.stack([torch.stack([outer_norms(r, c) for r in rows[0]]) for c in columns[:, 1]]),
    )
    assert vmap(outer_norms)(rows[:, :, :0, 0], columns[:, :, :0, 0]).tolist() == [[0.0] * 3] * 2
    assert vmap(outer_norms)(rows[:, :0, 0], columns[:, :0, 0]).shape == (2, 0)


@ON_EACH
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(outer_norms, fullgraph=True, backend="aot_eager")
    for shape in ((3, 4, 5, 6), (4, 4, 5, 6), (7, 9, 3, 2), (2, 1, 3, 2), (0, 4, 5, 6)):
        rows, columns = pair(shape, device=device)
        assert torch.equal(compiled(rows, columns), outer_norms(rows, columns))
    rows, columns = pair((3, 4, 5, 6), torch.bfloat16, device)
    assert torch.equal(compiled(rows, columns.double()), outer_norms(rows, columns.double()))


def test_compiled_on_gradients():
    def gradient_norms(weight, inputs):
        of_output = grad(lambda y: y.sin().sum())
        return outer_norms(vmap(of_output)(inputs @ weight.mT), inputs)

    torch.compiler.reset()
    weight, inputs = random((4, 5)), random((6, 3, 5))
    compiled = torch.compile(gradient_norms, fullgraph=True, backend="aot_eager")
    assert_close(compiled(weight, inputs), gradient_norms(weight, inputs))


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("error", "rows", "columns", "message"),
    [
        *(
            (
                ValueError, torch.ones(shape), torch.ones(other),
                "rows and columns must have shapes (n, T, R) and (n, T, C), got "
                f"{shape} and {other}",
            )
            for shape, other in [
                ((2, 3), (2, 3, 4)), ((2, 3, 4), (2, 3)), ((2, 3, 4), (3, 3, 4)), ((), (2, 3, 4)),
                ((2, 3, 4), (2, 1, 4)), ((1, 2, 3, 4), (1, 2, 3, 4)),
            ]
        ),
        *(
            (
                TypeError, ONES.to(dtype) if i == 0 else ONES, ONES.to(dtype) if i == 1 else ONES,
                f"{name} must be float16, bfloat16, float32 or float64, got {dtype}; pass "
                f"{name}.float()",
            )
            for dtype in (torch.int64, torch.bool, torch.complex64)
            for i, name in enumerate(("rows", "columns"))
        ),
        (
            TypeError, ONES, ONES.to("meta"),
            "columns must be on cpu like rows, got meta",
        ),
        (
            TypeError, ONES.to("meta"), ONES,
            "columns must be on meta like rows, got cpu",
        ),
    ],
)  # fmt: skip
def test_errors(error, rows, columns, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        outer_norms(rows, columns)


@pytest.mark.parametrize(
    ("name", "derive"),
    [
        ("rows", lambda r, c: jvp(lambda r: outer_norms(r, c), (r,), (r,))),
        ("columns", lambda r, c: jvp(lambda c: outer_norms(r, c), (c,), (c,))),
        ("rows", lambda r, c: jvp(outer_norms, (r, c), (r, c))),
        ("columns", lambda r, c: jacfwd(outer_norms, argnums=1)(r, c)),
    ],
)
def test_no_forward_derivative(name, derive):
    message = f"outer_norms has no forward-mode derivative, got {name} with a tangent; pass "
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message + name)}\\.detach\\(\\)$"):
        derive(random((3, 4, 5)), random((3, 4, 6)))


def test_detached_under_forward_differentiation():
    x = random((3, 4, 5))
    value, tangent = jvp(lambda x: outer_norms(x.detach(), x.detach()) + x[:, 0, 0], (x,), (x,))[:2]
    assert_close(value, outer_norms(x, x) + x[:, 0, 0])
    assert_close(tangent, x[:, 0, 0])


@pytest.mark.parametrize("which", [0, 1])
def test_no_backward_derivative(which):
    tensors = pair((3, 4, 5, 6))
    tensors[which].requires_grad_()
    norms = outer_norms(*tensors)
    with pytest.raises(RuntimeError, match=r"backward through memtools.outer_norms.*no autograd"):
        norms.sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import outer_norms
        print(outer_norms(torch.ones(1, 2, 3), torch.ones(1, 2, 5)).item())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "60.0\n"), run.stderr
