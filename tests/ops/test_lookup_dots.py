"""`lookup_dots` against the gradients of both tables, on the reference or the interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import importlib
import itertools
import math
import re
import subprocess
import sys

import pytest
import torch
from memtools_kernels import lookup_dots, lookup_norms, outer_norms
from memtools_kernels.backend import INTERPRET
from memtools_kernels.lookup_dots import _TILE, _lookup_dots_op, _lookup_dots_triton
from torch.func import jvp, vmap
from torch.nn.functional import embedding
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ON_EACH = pytest.mark.parametrize("device", DEVICES)
NAMES = ["gradients", "rows", "columns"]

# n, S, T, d and V: examples, lookups, positions of the head, width and rows of the table.
SHAPES = [
    (0, 3, 4, 5, 6), (3, 0, 4, 5, 6), (3, 4, 0, 5, 6), (3, 4, 5, 0, 6), (3, 0, 0, 0, 0),
    (3, 0, 4, 5, 0), (0, 0, 0, 0, 0),
    (1, 1, 1, 1, 1), (5, 1, 1, 3, 2), (1, 7, 1, 1, 3), (1, 1, 7, 1, 3), (3, 5, 13, 7, 11),
    (2, _TILE - 1, _TILE + 1, _TILE, 5), (2, _TILE, _TILE, _TILE - 1, 33),
    (2, _TILE + 1, _TILE - 1, _TILE + 1, 40), (2, _TILE + 1, _TILE + 1, 2 * _TILE + 1, 1),
    (1, 3 * _TILE + 2, 5, 3, 101), (1, 5, 3 * _TILE + 2, 3, 101), (1, 2, 3, 1031, 2),
]  # fmt: skip


def accumulator(tensors):
    wide = any(x.dtype == torch.float64 for x in tensors)
    return torch.float64 if wide else torch.float32


def of_tables(indices, gradients, rows, columns):
    """Inner product of both gradients of each example's table."""
    dots = []
    for index, gradient, row, column in zip(indices, gradients, rows, columns, strict=True):
        of_embedding = gradient.new_zeros(row.shape[1], gradient.shape[1])
        for place, lookup in zip(index, gradient, strict=True):
            of_embedding[place] += lookup
        of_head = row.new_zeros(row.shape[1], column.shape[1])
        for r, c in zip(row, column, strict=True):
            of_head += r[:, None] * c
        dots.append((of_embedding * of_head).sum())
    return torch.stack(dots) if dots else gradients.new_zeros(0)


def check(indices, *tensors, values=None):
    """Compare with float64; ``values`` are the arguments in plain memory."""
    got = lookup_dots(indices, *tensors)
    dtype = accumulator(tensors)
    assert got.dtype == dtype
    assert got.device == indices.device
    assert got.shape == indices.shape[:1]
    indices, *tensors = values or (indices, *tensors)
    # Every addition rounds by a factor of at most 1 ± eps / 2 (1 ± eps where a tensor core cuts
    # digits off), so a sum is off by at most depth * eps times the sum of the absolute values of
    # its terms. Depth is d for c · g, a product with r, and below 128 for each of two sums, of a
    # tile and of tiles. The float64 of the yardstick sums up S lookups, T positions and the table.
    dots, terms = (
        of_tables(indices.cpu(), *(change(x.double().cpu()) for x in tensors))
        for change in (torch.clone, torch.abs)
    )
    _, lookups, width = tensors[0].shape
    depth = width + 1 + 2 * 128
    error = depth * torch.finfo(dtype).eps
    error += (lookups + tensors[1].shape[1] + 128) * torch.finfo(torch.float64).eps
    off = (got.cpu().double() - dots).abs()
    assert (off <= error * terms).all(), (off - error * terms).max()


def arguments(shape, dtypes=None, device="cpu"):
    """Random arguments of one or of three dtypes; few rows are looked up, so that they repeat."""
    n, lookups, positions, width, size = shape
    generator = torch.Generator().manual_seed(math.prod(shape))
    bound = min(size, lookups // 2 + 1)
    if dtypes is None or isinstance(dtypes, torch.dtype):
        dtypes = [dtypes or torch.float32] * 3
    indices = torch.randint(0, max(bound, 1), (n, lookups), generator=generator)
    indices = size - 1 - indices  # the last rows of the table
    shapes = [(n, lookups, width), (n, positions, size), (n, positions, width)]
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    return indices.to(device), *tensors


def fenced(x, fence=math.nan):
    """The same values amid others, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], fence)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dots(shape, dtype, device):
    values = arguments(shape, dtype, device)
    check(*values)
    indices, gradients, rows, columns = values
    # Nor do rows of the table matter that nobody looks up.
    rows = fenced(rows)
    for index, row in zip(indices, rows, strict=True):
        looked_up = torch.zeros(shape[-1], dtype=torch.bool, device=device)
        looked_up[index] = True
        row[:, ~looked_up] = math.nan
    # What is around the indices are indices as well.
    check(fenced(indices, 0), fenced(gradients), rows, fenced(columns), values=values)


@ON_EACH
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=3)), ids=str)
def test_mixed_dtypes(dtypes, device):
    check(*arguments((2, 5, 4, 7, 6), dtypes, device))


PATTERNS = {
    "all equal": torch.zeros_like,
    "all different": lambda s: s,
    "all different, backwards": lambda s: s.flip(0),
    "pairs": lambda s: s // 2,
    "cyclic": lambda s: s % 3,
    "the last": lambda s: torch.full_like(s, len(s) - 1),
}


@ON_EACH
@pytest.mark.parametrize("lookups", [1, 2, _TILE, 2 * _TILE + 1])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_repeated_lookups(pattern, lookups, device):
    _, *tensors = arguments((2, lookups, 3, 4, lookups), device=device)
    index = PATTERNS[pattern](torch.arange(lookups))
    # Each example has a table of its own.
    check(torch.stack([index, index.flip(0)]).to(device), *tensors)


@ON_EACH
@pytest.mark.parametrize("index", [-1, 6, 2**40])
def test_a_row_that_is_not_there_is_never_read(index, device):
    indices, *tensors = arguments((3, 5, 4, 7, 6), device=device)
    indices[1, 2] = index
    if device == "cpu" and not INTERPRET:
        with pytest.raises((IndexError, RuntimeError), match="out of DATA bounds"):
            lookup_dots(indices, *tensors)
    else:
        assert lookup_dots(indices, *tensors).isnan().tolist() == [False, True, False]


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(dtype, device):
    # No sum of these reaches 2^24, and each one of the arguments is below 2^8.
    indices, *tensors = arguments((3, 40, 35, 9, 11), torch.float64, device)
    tensors = [(x * 3).round() for x in tensors]
    expected = of_tables(indices, *tensors)
    assert expected.abs().max() < 2**24
    got = lookup_dots(indices, *(x.to(dtype) for x in tensors))
    assert got.tolist() == expected.tolist()


LAYOUTS = {
    "examples last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "last two transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other position": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other example": lambda x: x.repeat_interleave(2, 0)[::2],
    "flipped storage": lambda x: x.flip(1).contiguous().flip(1),
}


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, dtype, device):
    values = arguments((3, 7, 5, 35, 6), dtype, device)
    for i in range(4):
        args = list(values)
        args[i] = LAYOUTS[layout](args[i])
        check(*args, values=values)
    check(*map(LAYOUTS[layout], values), values=values)


@ON_EACH
def test_expanded(device):
    values = arguments((3, 7, 5, 4, 6), device=device)
    for i, x in enumerate(values):
        for dim in range(x.ndim):
            args = list(values)
            args[i] = x.narrow(dim, 0, 1).expand_as(x)
            check(*args)


@ON_EACH
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_offsets_beyond_32_bits(name, dim, device):
    # 8 GB of address space, of which a few pages are touched; the lower half is where an offset
    # would lead that has become negative.
    storage = torch.empty(2**32 + 4, dtype=torch.float16, device=device)
    sizes = {"gradients": "nsd", "rows": "ntv", "columns": "ntd"}
    shape = [3 if letter == sizes[name][dim] else 2 for letter in "nstdv"]
    indices, *tensors = arguments(shape, torch.float16, device)
    stride = [2, 1]
    stride.insert(dim, 2**30)
    given = dict(zip(NAMES, tensors, strict=True))
    view = storage.as_strided(given[name].shape, stride, 2**31)
    view.copy_(given[name])
    given[name] = view
    check(indices, *given.values())


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_completes_the_norm_of_the_gradient_of_a_tied_table(dtype, device):
    indices, gradients, rows, columns = arguments((4, 6, 5, 3, 7), dtype, device)
    squares = lookup_norms(indices, gradients) + outer_norms(rows, columns)
    squares += 2 * lookup_dots(indices, gradients, rows, columns)
    table = torch.zeros(7, 3, dtype=torch.float64, device=device, requires_grad=True)
    gradients, rows, columns = gradients.double(), rows.double(), columns.double()
    expected = []
    for index, gradient, row, column in zip(indices, gradients, rows, columns, strict=True):
        outputs = [embedding(index, table), column @ table.mT]
        (of_table,) = torch.autograd.grad(outputs, table, [gradient, row])
        expected.append(of_table.square().sum())
    # Each of the three adds up products whose absolute values are below those of this sum, which
    # is one of squares, 6 lookups, 5 positions and 3 elements deep.
    terms = lookup_norms(indices, gradients.abs()) + outer_norms(rows.abs(), columns.abs())
    off = (squares.double() - torch.stack(expected)).abs()
    assert (off <= 50 * torch.finfo(dtype).eps * 2 * terms).all()


SPECIAL = [math.nan, math.inf, -math.inf]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", SPECIAL, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity(name, value, dtype, device):
    # Lookups of positive numbers: the sum over s and t is infinite like its one infinite term.
    indices, *tensors = arguments((3, 5, 4, 3, 6), dtype, device)
    given = dict(zip(NAMES, (x.abs() + 1 for x in tensors), strict=True))
    before = lookup_dots(indices, *given.values())
    given[name][1, -1, indices[1, 0] if name == "rows" else 0] = value
    got = lookup_dots(indices, *given.values())
    assert_close(got[1].item(), value, equal_nan=True)
    assert torch.equal(got[[0, 2]], before[[0, 2]])


@ON_EACH
@pytest.mark.parametrize("value", SPECIAL, ids=str)
def test_a_sum_of_no_terms_is_zero(value, device):
    # Whatever it would have been multiplied by.
    for shape in ((2, 3, 4, 0, 5), (2, 0, 4, 3, 5), (2, 3, 0, 4, 5)):
        indices, *tensors = arguments(shape, device=device)
        assert lookup_dots(indices, *(torch.full_like(x, value) for x in tensors)).tolist() == [
            0,
            0,
        ]


@ON_EACH
def test_zero_gradients_do_not_count(device):
    values = arguments((3, 5, 4, 3, 6), device=device)
    indices, gradients, rows, columns = values
    zeros = gradients.new_zeros(3, _TILE, 3)
    for padding in range(6):
        padded = torch.cat([torch.full_like(indices, padding).repeat(1, 8)[:, :_TILE], indices], 1)
        check(padded, torch.cat([zeros, gradients], 1), rows, columns, values=values)


@ON_EACH
@pytest.mark.parametrize("shape", [(9, 5, 4, 3, 6), (2, 70, 40, 33, 9)], ids=str)
def test_two_runs_are_bit_identical(shape, device):
    args = arguments(shape, device=device)
    assert torch.equal(lookup_dots(*args), lookup_dots(*args))


@ON_EACH
@pytest.mark.parametrize("shape", [(19, 5, 4, 3, 6), (19, 40, 40, 3, 6)], ids=str)
def test_an_example_does_not_depend_on_the_others(shape, device):
    args = arguments(shape, device=device)
    dots = lookup_dots(*args)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0)).to(device)
    for part in (order, order[:1], order[:7]):
        assert torch.equal(lookup_dots(*(x[part] for x in args)), dots[part])


@ON_EACH
def test_autocast_rounds_nothing(device):
    args = arguments((3, 5, 4, 3, 6), device=device)
    dots = lookup_dots(*args)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        assert torch.equal(lookup_dots(*args), dots)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1, 1), (2, 33, 5, 3, 40), (1, 5, 33, 35, 7)], ids=str)
def test_what_is_read_and_nothing_beyond(shape, traffic):
    reads, writes = traffic
    indices, gradients, rows, columns = arguments(shape)
    lookup_dots(indices, gradients, rows, columns)
    looked_up = [
        rows[i, t, index].data_ptr()
        for i, row in enumerate(indices)
        for index in row.tolist()
        for t in range(shape[2])
    ]
    elements = {
        address
        for x in (indices, gradients, columns)
        for address in range(x.data_ptr(), x.data_ptr() + x.nbytes, x.element_size())
    }
    assert set(reads) == elements | set(looked_up)
    tiles = -(-shape[1] // _TILE) * -(-shape[2] // _TILE)
    assert len(writes) == len(set(writes)) == shape[0] * tiles
    assert not set(reads) & set(writes)


def test_inputs_are_left_alone():
    for dtype in DTYPES:
        args = arguments((3, 5, 4, 3, 6), dtype)
        before = [x.clone() for x in args]
        lookup_dots(*args).fill_(math.nan)
        assert all(map(torch.equal, args, before))


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.lookup_dots")
    unused = "lookup_dots_reference" if INTERPRET else "_lookup_dots_triton"
    monkeypatch.setattr(module, unused, None)
    check(*arguments((3, 5, 4, 3, 6)))


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_that_alone_are_wide_compile_for_a_gpu(aot, target, dtype):
    args = arguments((2, 5, 4, 3, 6), [dtype, torch.float64, dtype])
    with aot.compile_only(aot.TARGETS[target]) as kernels:
        _lookup_dots_triton(*args)
    (report,) = map(aot.resources, kernels)
    assert report.spill_bytes == 0
    assert not report.atomics


@ON_EACH
@pytest.mark.parametrize(
    "shape",
    [(4, 5, 3, 2, 6), (0, 3, 4, 5, 6), (3, 0, 4, 5, 6), (3, 4, 0, 5, 6), (3, 4, 5, 0, 6)],
    ids=str,
)
def test_opcheck(shape, device):
    torch.library.opcheck(_lookup_dots_op, arguments(shape, device=device))
    wide = arguments(shape, [torch.bfloat16, torch.float64, torch.float16], device)
    torch.library.opcheck(_lookup_dots_op, tuple(map(LAYOUTS["last two transposed"], wide)))


@pytest.mark.parametrize("wide", range(4))
def test_meta_device(wide):
    dtypes = [torch.float64 if i == wide else torch.bfloat16 for i in range(3)]
    got = lookup_dots(*arguments((3, 5, 4, 3, 6), dtypes, "meta"))
    dtype = torch.float32 if wide == 3 else torch.float64
    assert (got.shape, got.dtype, got.device.type) == ((3,), dtype, "meta")


# Over each dimension of one argument, or over none of it; then over one argument alone.
IN_DIMS = [
    tuple(dim if j == i else 0 for j in range(4))
    for i, dims in enumerate([(0, 1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3)])
    for dim in (*dims, None)
]
IN_DIMS += [tuple(2 if j == i else None for j in range(4)) for i in range(4)]


@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap(in_dims):
    batches = [x.unflatten(0, (5, 2)) for x in arguments((10, 6, 4, 3, 7))]
    args = [
        batch[0] if dim is None else batch.movedim(0, dim)
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    parts = [
        batch[:1].expand_as(batch) if dim is None else batch
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    expected = torch.stack([lookup_dots(*part) for part in zip(*parts, strict=True)])
    assert_close(vmap(lookup_dots, in_dims=in_dims)(*args), expected)


def test_nested_vmap():
    args = arguments((12, 5, 4, 3, 6))
    indices, gradients, rows, columns = (x.unflatten(0, (2, 3, 2)) for x in args)
    expected = lookup_dots(*args).view(2, 3, 2)
    assert_close(vmap(vmap(lookup_dots))(indices, gradients, rows, columns), expected)
    inner = vmap(lookup_dots, in_dims=(None, 0, 1, None))
    got = vmap(inner, in_dims=(0, 2, None, None))(
        indices[:, 0], gradients.movedim(0, 2), rows[0].movedim(0, 1), columns[0, 0]
    )
    shared = [
        torch.stack(
            [
                lookup_dots(indices[i, 0], gradients[i, j], rows[0, j], columns[0, 0])
                for j in range(3)
            ]
        )
        for i in range(2)
    ]
    assert_close(got, torch.stack(shared))


@ON_EACH
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(lookup_dots, fullgraph=True, backend="aot_eager")
    for shape in [(3, 4, 5, 2, 6), (4, 4, 5, 2, 6), (7, 9, 3, 4, 8)]:
        args = arguments(shape, device=device)
        assert torch.equal(compiled(*args), lookup_dots(*args))


# Errors.

GOOD = {
    "indices": torch.zeros(2, 3, dtype=torch.int64),
    "gradients": torch.ones(2, 3, 4),
    "rows": torch.ones(2, 5, 6),
    "columns": torch.ones(2, 5, 4),
}
FLOATS = "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("indices", shape) for shape in ((3,), (2, 4), (1, 3), (2, 3, 1), ())),
        *(("gradients", shape) for shape in ((2, 3), (2, 4, 4), (1, 3, 4), (2, 3, 5))),
        *(("rows", shape) for shape in ((2, 5), (2, 4, 6), (1, 5, 6), (2, 5, 6, 1))),
        *(("columns", shape) for shape in ((2, 5), (2, 4, 4), (1, 5, 4), (2, 5, 3), ())),
    ],
)  # fmt: skip
def test_errors_of_shapes(name, shape):
    given = GOOD | {name: GOOD[name].new_ones(shape)}
    shapes = ", ".join(str(tuple(x.shape)) for x in given.values())
    message = (
        "indices, gradients, rows and columns must have shapes (n, S), (n, S, d), (n, T, V) and "
        f"(n, T, d), got {shapes}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lookup_dots(**given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(
            (
                {"indices": GOOD["indices"].to(dtype)},
                f"indices must be torch.int64, got {dtype}; pass indices.long()",
            )
            for dtype in (torch.int32, torch.bool, torch.float32)
        ),
        *(
            (
                {name: GOOD[name].to(dtype)},
                f"{name} must be {FLOATS} on cpu, got {dtype} on cpu",
            )
            for name in NAMES
            for dtype in (torch.int64, torch.complex64)
        ),
        *(
            (
                {name: GOOD[name].to("meta")},
                f"{name} must be {FLOATS} on cpu, got torch.float32 on meta",
            )
            for name in NAMES
        ),
    ],
)
def test_errors_of_types(wrong, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        lookup_dots(**GOOD | wrong)


@pytest.mark.parametrize("name", NAMES)
def test_no_forward_derivative(name):
    message = (
        f"lookup_dots has no forward-mode derivative, got {name} with a tangent; pass "
        f"{name}.detach()"
    )
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        jvp(lambda x: lookup_dots(**GOOD | {name: x}), (GOOD[name],), (GOOD[name],))
    value, tangent = jvp(
        lambda x: lookup_dots(**GOOD | {name: x.detach()}) + x[:, 0, 0],
        (GOOD[name],),
        (GOOD[name],),
    )[:2]
    assert_close(value, lookup_dots(**GOOD) + 1)
    assert_close(tangent, torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_no_backward_derivative(name):
    dots = lookup_dots(**GOOD | {name: torch.ones_like(GOOD[name]).requires_grad_()})
    with pytest.raises(RuntimeError, match=r"backward through memtools.lookup_dots.*no autograd"):
        dots.sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import lookup_dots
        rows, columns = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]])
        print(lookup_dots(torch.tensor([[1, 0]]), torch.tensor([[[1.0], [10.0]]]), rows, columns))
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "tensor([36.])\n"), run.stderr
