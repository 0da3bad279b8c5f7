"""`lookup_norms` against exactly rounded sums, on the reference or the interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import importlib
import itertools
import math
import re
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from memtools_kernels import lookup_norms
from memtools_kernels.backend import INTERPRET
from memtools_kernels.lookup_norms import _ELEMENTS, _POSITIONS, _lookup_norms_op
from torch.func import jacfwd, jvp, vmap
from torch.nn.functional import embedding
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ON_EACH = pytest.mark.parametrize("device", DEVICES)

# n, T and d. Each element of a tile takes the interpreter 0.1 ms.
SHAPES = [
    (0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (3, 0, 0),
    (1, 1, 1), (5, 1, 3), (3, 13, 5), (1, 257, 1),
    (3, _POSITIONS - 1, 2), (3, _POSITIONS, 2), (3, _POSITIONS + 1, 2),
    (2, 2 * _POSITIONS - 1, 1), (2, 2 * _POSITIONS, 1), (2, 2 * _POSITIONS + 1, 1),
    (1, 2, _ELEMENTS - 1), (1, 3, _ELEMENTS), (1, 5, _ELEMENTS + 1), (1, 2, 300),
]  # fmt: skip


def yardstick(indices, gradients):
    """The squared norm of each example, and how far off a result may be."""
    eps = torch.finfo(torch.float64 if gradients.dtype == torch.float64 else torch.float32).eps
    _, positions, width = gradients.shape
    squares, errors = [], []
    for index, gradient in zip(indices.tolist(), gradients.double().tolist(), strict=True):
        runs = defaultdict(list)
        for row, element in zip(index, gradient, strict=True):
            runs[row].append(element)
        columns = [column for run in runs.values() for column in zip(*run, strict=True)]
        sums = [abs(math.fsum(column)) for column in columns]
        # Every addition rounds by a factor of at most 1 ± eps / 2. A sum is off by at most that
        # times the number of its terms, times the sum of their absolute values: where they cancel,
        # the square of a sum is small too, and off by far less than the squares of the terms.
        off = [len(column) * eps / 2 * math.fsum(map(abs, column)) for column in columns]
        squares.append(math.fsum(s * s for s in sums))
        # The squares are added in any order, rounded once before, and by a root and a square of it
        # after. Errors of errors are within the other half of eps.
        depth = positions + width + 8
        error = (
            2 * s * e + e * e + depth * eps * (s + e) ** 2 for s, e in zip(sums, off, strict=True)
        )
        errors.append(math.fsum(error))
    return torch.tensor([squares, errors], dtype=torch.float64).unbind()


def check(indices, gradients, values=None):
    """Compare with exact sums; ``values`` are indices and gradients in plain memory."""
    got = lookup_norms(indices, gradients)
    wide = gradients.dtype == torch.float64
    assert got.dtype == (torch.float64 if wide else torch.float32)
    assert got.device == gradients.device
    assert got.shape == gradients.shape[:1]
    expected, error = yardstick(*(values or (indices, gradients)))
    off = (got.cpu().double() - expected).abs()
    assert (off <= error).all(), (off - error).max()


def random(shape, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def random_indices(n, positions, *, device="cpu", size=None):
    """Of a table so small that about half of the lookups are repeated."""
    generator = torch.Generator().manual_seed(n + positions)
    size = size or positions // 2 + 1
    return torch.randint(0, size, (n, positions), generator=generator).to(device)


def fenced(x, fence=math.nan):
    """The same values amid others, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], fence)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms(shape, dtype, device):
    indices, gradients = random_indices(*shape[:2], device=device), random(shape, dtype, device)
    # What is around the indices are indices as well.
    check(fenced(indices, 0), fenced(gradients), (indices, gradients))


# T indices. Those of an example are shuffled, and each has a table of its own.
PATTERNS = {
    "all equal": torch.zeros_like,
    "all different": lambda t: t,
    "all different, backwards": lambda t: -t + len(t),
    "pairs": lambda t: t // 2,
    "runs of 5": lambda t: t // 5,
    "runs of a tile": lambda t: t // _POSITIONS,
    "runs of more than a tile": lambda t: t // (_POSITIONS + 3),
    "one and all others": lambda t: (t > 0).long(),
    "all others and one": lambda t: (t == len(t) - 1).long(),
    "large": lambda t: 2**63 - 1 - t // 3,
    "beyond 32 bits, equal in the low ones": lambda t: t // 3 << 32,
}


@ON_EACH
@pytest.mark.parametrize("positions", [1, 2, 15, 16, 17, 32, 33, 50])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern, positions, device):
    indices = PATTERNS[pattern](torch.arange(positions))
    generator = torch.Generator().manual_seed(positions)
    orders = [torch.arange(positions), torch.randperm(positions, generator=generator)]
    indices = torch.stack([indices[order] for order in orders]).to(device)
    check(indices, random((2, positions, 1), device=device))


@ON_EACH
def test_every_run_across_tiles(device):
    # One run from each of these positions, in sorted order, to each other.
    ends = [*(_POSITIONS * i + j for i in range(3) for j in (-1, 0, 1, 2)), 3 * _POSITIONS - 1]
    runs = [(begin, end) for begin in ends for end in ends if 0 <= begin < end]
    indices = torch.arange(3 * _POSITIONS - 1).repeat(len(runs), 1)
    for index, (begin, end) in zip(indices, runs, strict=True):
        index[begin:end] = begin
    check(indices.to(device), random((*indices.shape, 1), device=device))


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [2, _POSITIONS, 2 * _POSITIONS + 2])
def test_gradients_that_cancel(positions, dtype, device):
    # Integers, whose sums are exact in any order: 0 but for the last row of the table.
    halves = (random((2, positions // 2, 1)) * 40).round()
    indices = random_indices(2, positions // 2).repeat(1, 2)
    order = torch.randperm(positions, generator=torch.Generator().manual_seed(0))
    gradients = torch.cat([halves, -halves], 1)[:, order].to(device, dtype)
    indices = indices[:, order].to(device)
    assert lookup_norms(indices, gradients).tolist() == [0, 0]
    gradients = torch.cat([gradients, torch.full_like(gradients[:, :1], 2.0**-10)], 1)
    indices = torch.cat([indices, torch.full_like(indices[:, :1], 10**6)], 1)
    assert lookup_norms(indices, gradients).tolist() == [2.0**-20, 2.0**-20]


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_that_nearly_cancel(dtype, device):
    # Sums of 1 / 100 of their terms: no digit is lost beyond those of the sums.
    n, positions = 2, 3 * _POSITIONS + 5
    gradients = random((n, positions, 2), dtype)
    gradients = torch.cat([gradients, -gradients * 1.01], 1).to(device)
    indices = random_indices(n, positions).repeat(1, 2).to(device)
    check(indices, gradients)


LAYOUTS = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "last two transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other position": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "flipped storage": lambda x: x.flip(1).contiguous().flip(1),
}


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, dtype, device):
    indices, gradients = random_indices(3, 7, device=device), random((3, 7, 5), dtype, device)
    check(indices, LAYOUTS[layout](gradients), (indices, gradients))
    check(LAYOUTS[layout](indices), gradients, (indices, gradients))
    check(LAYOUTS[layout](indices), LAYOUTS[layout](gradients), (indices, gradients))


@ON_EACH
def test_expanded(device):
    indices, gradients = random_indices(3, 7, device=device), random((3, 7, 5), device=device)
    for sizes in itertools.product([1, None], repeat=3):
        part = gradients[tuple(slice(size) for size in sizes)].expand(3, 7, 5)
        check(indices, part)
        check(indices[:1].expand(3, 7), part)
        check(indices[:, :1].expand(3, 7), part)


@ON_EACH
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_beyond_32_bits(dim, device):
    # 8 GB of address space, of which a few pages are touched; the lower half is where an offset
    # would lead that has become negative.
    storage = torch.empty(2**32 + 1, dtype=torch.float16, device=device)
    shape, stride = [1, 1, 1], [1, 1, 1]
    shape[dim], stride[dim] = 3, 2**30
    gradients = storage.as_strided(shape, stride, 2**31)
    gradients.copy_(random(shape))
    check(random_indices(*shape[:2], device=device), gradients)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_norm_of_the_gradient_of_an_embedding(dtype, device):
    indices = random_indices(4, 20, device=device, size=6)
    gradients = random((4, 20, 3), dtype, device)
    # Row 2 is for padding, which does not count.
    gradients = gradients.masked_fill((indices == 2)[..., None], 0)
    table = torch.zeros(6, 3, dtype=torch.float64, device=device, requires_grad=True)
    expected = []
    for index, gradient in zip(indices, gradients.double(), strict=True):
        looked_up = embedding(index, table, padding_idx=2)
        (of_table,) = torch.autograd.grad(looked_up, table, gradient)
        expected.append(of_table.square().sum())
    _, error = yardstick(indices, gradients)
    off = lookup_norms(indices, gradients).double() - torch.stack(expected)
    assert (off.abs().cpu() <= error).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", [1, 2 * _POSITIONS + 3])
def test_nan_and_infinity(positions, dtype, device):
    # In the order of the formula: a sum over equal lookups, its square, and a sum of those.
    indices = torch.zeros(6, positions, dtype=torch.int64, device=device)
    gradients = random((6, positions, 2), dtype, device)
    gradients[1, 0, 1] = math.nan
    gradients[2, -1, 0] = math.inf
    gradients[3, 0, 1] = -math.inf
    gradients[4, 0, 0], gradients[4, -1, 0] = math.inf, -math.inf
    gradients[5, 0, 0], gradients[5, -1, 0], indices[5, 0] = math.inf, -math.inf, 3
    got = lookup_norms(indices, gradients)
    assert got[1].isnan()
    assert got[[2, 3, 5]].tolist() == [math.inf] * 3
    if positions > 1:
        assert got[4].isnan()
    expected, error = yardstick(indices[:1], gradients[:1])
    assert ((got[:1].cpu().double() - expected).abs() <= error).all()


@ON_EACH
def test_zero_gradients_do_not_count(device):
    indices, gradients = random_indices(3, 9, device=device), random((3, 9, 2), device=device)
    values = indices, gradients
    zeros = torch.zeros(3, 40, 2, device=device)
    for padding in (0, 4, 10**9):
        padded = torch.cat([indices, indices.new_full((3, 40), padding)], 1)
        check(padded, torch.cat([gradients, zeros], 1), values)
        check(padded.flip(1), torch.cat([gradients, -zeros], 1).flip(1), values)
    assert lookup_norms(padded[:, 9:], zeros).tolist() == [0, 0, 0]


@ON_EACH
@pytest.mark.parametrize("shape", [(9, 5, 3), (3, 70, 2)], ids=str)
def test_two_runs_are_bit_identical(shape, device):
    indices, gradients = random_indices(*shape[:2], device=device), random(shape, device=device)
    assert torch.equal(lookup_norms(indices, gradients), lookup_norms(indices, gradients))


@ON_EACH
def test_an_example_does_not_depend_on_the_others(device):
    indices, gradients = random_indices(13, 20, device=device), random((13, 20, 2), device=device)
    norms = lookup_norms(indices, gradients)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0)).to(device)
    for part in (order, order[:1], order[:7]):
        assert torch.equal(lookup_norms(indices[part], gradients[part]), norms[part])
    # Nor does an infinite one reach its neighbours.
    gradients[order[0]] = math.inf
    assert torch.equal(lookup_norms(indices, gradients)[order[1:]], norms[order[1:]])


@pytest.mark.parametrize("layout", ["last two transposed", "every other element"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 35, 3), (1, 2, 129)], ids=str)
def test_every_gradient_is_read_once_and_nothing_beyond(shape, layout, traffic):
    reads, writes = traffic
    gradients = LAYOUTS[layout](random(shape))
    storage = gradients.untyped_storage()
    begin, end = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    lookup_norms(random_indices(*shape[:2]), gradients)
    offsets = torch.arange(storage.nbytes() // 4).as_strided(shape, gradients.stride())
    elements = (begin + 4 * offsets.flatten()).tolist()
    assert sorted(address for address in reads if begin <= address < end) == sorted(elements)
    assert len(writes) == len(set(writes)) == shape[0] * -(-shape[2] // _ELEMENTS)
    # Beside these, the sorted indices and where they were.
    others = {address for address in reads if not begin <= address < end}
    assert len(others) == 2 * shape[0] * shape[1]
    assert not others & set(writes)


def test_inputs_are_left_alone():
    indices, gradients = random_indices(3, 20), random((3, 20, 2))
    before = indices.clone(), gradients.clone()
    lookup_norms(indices, gradients).fill_(math.nan)
    assert torch.equal(indices, before[0])
    assert torch.equal(gradients, before[1])


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.lookup_norms")
    unused = "lookup_norms_reference" if INTERPRET else "_lookup_norms_triton"
    monkeypatch.setattr(module, unused, None)
    assert lookup_norms(torch.tensor([[7, 5, 7]]), torch.ones(1, 3, 1)).tolist() == [5]


@ON_EACH
@pytest.mark.parametrize("shape", [(4, 5, 2), (0, 3, 2), (3, 0, 2), (3, 2, 0)], ids=str)
def test_opcheck(shape, device):
    indices, gradients = random_indices(*shape[:2], device=device), random(shape, device=device)
    torch.library.opcheck(_lookup_norms_op, (indices, gradients))
    transposed = gradients.double().mT.contiguous().mT
    torch.library.opcheck(_lookup_norms_op, (indices, transposed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_device(dtype):
    indices = torch.empty(3, 4, dtype=torch.int64, device="meta")
    got = lookup_norms(indices, torch.empty(3, 4, 5, dtype=dtype, device="meta"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (got.shape, got.dtype, got.device.type) == ((3,), wide, "meta")


@pytest.mark.parametrize(
    "in_dims", list(itertools.product([0, 1, 2, None], [0, 1, 2, 3, None]))[:-1], ids=str
)
def test_vmap(in_dims):
    batches = random_indices(6, 4).view(3, 2, 4), random((3, 2, 4, 1))
    args = [
        batch[0] if dim is None else batch.movedim(0, dim)
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    parts = [
        batch[:1].expand_as(batch) if dim is None else batch
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    expected = torch.stack([lookup_norms(*pair) for pair in zip(*parts, strict=True)])
    assert_close(vmap(lookup_norms, in_dims=in_dims)(*args), expected)


def test_nested_vmap():
    indices, gradients = random_indices(6, 4).view(2, 3, 1, 4), random((2, 3, 1, 4, 2))
    expected = lookup_norms(indices.view(6, 4), gradients.view(6, 4, 2)).view(2, 3, 1)
    assert_close(vmap(vmap(lookup_norms))(indices, gradients), expected)
    outer = vmap(vmap(lookup_norms, in_dims=(None, 0)), in_dims=(0, 1))
    one = indices[:, 0]
    shared = torch.stack(
        [torch.stack([lookup_norms(one[i], gradients[i, j]) for j in range(3)]) for i in range(2)]
    )
    assert_close(outer(one, gradients.movedim(0, 1)), shared)


@ON_EACH
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(lookup_norms, fullgraph=True, backend="aot_eager")
    for n, positions, width in [(3, 4, 2), (4, 4, 2), (7, 9, 3)]:
        indices = random_indices(n, positions, device=device)
        gradients = random((n, positions, width), device=device)
        assert torch.equal(compiled(indices, gradients), lookup_norms(indices, gradients))


ONES = torch.ones(2, 3, 4)
INDICES = torch.zeros(2, 3, dtype=torch.int64)
FLOATS = "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("error", "indices", "gradients", "message"),
    [
        *(
            (
                ValueError, indices, gradients,
                "indices and gradients must have shapes (n, T) and (n, T, d), got "
                f"{tuple(indices.shape)} and {tuple(gradients.shape)}",
            )
            for indices, gradients in (
                (INDICES, ONES[0]), (INDICES, ONES[None]), (INDICES[0], ONES), (INDICES[:1], ONES),
                (INDICES[:, :2], ONES), (INDICES[..., None], ONES), (INDICES[0], ONES[:, 0]),
            )
        ),
        *(
            (
                TypeError, INDICES.to(dtype), ONES,
                f"indices must be torch.int64, got {dtype}; pass indices.long()",
            )
            for dtype in (torch.int32, torch.uint8, torch.bool, torch.float32)
        ),
        *(
            (
                TypeError, INDICES, ONES.to(dtype),
                f"gradients must be {FLOATS} on cpu, got {dtype} on cpu",
            )
            for dtype in (torch.int64, torch.complex64, torch.bool)
        ),
        (
            TypeError, INDICES, ONES.to("meta"),
            f"gradients must be {FLOATS} on cpu, got torch.float32 on meta",
        ),
    ],
)  # fmt: skip
def test_errors(error, indices, gradients, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        lookup_norms(indices, gradients)


@pytest.mark.parametrize("derive", [lambda f, x: jvp(f, (x,), (x,)), lambda f, x: jacfwd(f)(x)])
def test_no_forward_derivative(derive):
    message = (
        "lookup_norms has no forward-mode derivative, got gradients with a tangent; pass "
        "gradients.detach()"
    )
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        derive(lambda x: lookup_norms(INDICES, x), random((2, 3, 4)))


def test_detached_under_forward_differentiation():
    x = random((2, 3, 4))
    norms = lookup_norms(INDICES, x)
    value, tangent = jvp(lambda x: lookup_norms(INDICES, x.detach()) + x[:, 0, 0], (x,), (x,))[:2]
    assert_close(value, norms + x[:, 0, 0])
    assert_close(tangent, x[:, 0, 0])


def test_no_backward_derivative():
    norms = lookup_norms(INDICES, random((2, 3, 4)).requires_grad_())
    with pytest.raises(RuntimeError, match=r"backward through memtools.lookup_norms.*no autograd"):
        norms.sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import lookup_norms
        print(lookup_norms(torch.tensor([[7, 5, 7]]), torch.ones(1, 3, 1)).item())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "5.0\n"), run.stderr
