"""`row_norms` against exactly rounded sums in float64, on the reference or the interpreted kernel.

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
from memtools_kernels import row_norms
from memtools_kernels.row_norms import _CACHED, _STEPS, _TILE, INTERPRET, _row_norms_op
from torch.func import grad, jacfwd, jvp, vmap
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
P = [1, 2, math.inf]
PART = _STEPS * _TILE  # a longer row takes two launches

SHAPES = [
    (0,), (1,), (1031,),
    (0, 5), (5, 0), (0, 0), (3, 0, 4), (0, 3, 4),
    (1, 1), (3, 7), (255, 7), (256, 7), (257, 7), (13, 127), (13, 128), (13, 129),
    (2, _TILE - 1), (2, _TILE), (2, _TILE + 1), (1, PART - 1), (1, PART), (1, PART + 1), (1, 40009),
    (2, 3, 1, 5), (5, 3, 17, 19),
]  # fmt: skip

# Adding non-negative numbers, every addition rounds by a factor of at most 1 ± eps / 2, so a sum is
# off by at most depth * eps / 2, where depth counts the additions that one element goes through.
# Kernel: 8 tiles + log2(2048) within a tile + square and root = 21 a launch, 3 launches at most.
# Reference: torch.sum adds in blocks, 4 levels of 16 and up to 32 lanes, and casts once, below 128;
# squares are added one by one in runs of 1024, then those of 1024 runs, and so on: three levels.
# A square has twice the relative error of the norm, and is rounded once.
DEPTH = {1: 128, 2: 3 * 1025, math.inf: 0}


def tolerance(dtype, p, *, squared=False):
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    depth = 2 * DEPTH[p] + 1 if squared else DEPTH[p]
    return {"rtol": depth * torch.finfo(accumulator).eps / 2, "atol": 0}


def yardstick(x, p):
    xs = [x] if isinstance(x, torch.Tensor) else x
    rows = [one.double().cpu().reshape(len(one), math.prod(one.shape[1:])) for one in xs]
    rows = torch.cat(rows, 1).abs()
    if p == math.inf:
        return rows.amax(1) if rows.numel() else torch.zeros(len(rows), dtype=torch.float64)
    sums = torch.tensor([math.fsum(row) for row in (rows**p).tolist()], dtype=torch.float64)
    return sums ** (1 / p)


def random(shape, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def fenced(x):
    """The same values amid NaN, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], math.nan)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


def check(x, p, values=None, *, squared=False):
    """Compare the norms of ``x``, which holds ``values`` in some memory layout, with float64."""
    got = row_norms(x, p, squared=squared)
    xs = [x] if isinstance(x, torch.Tensor) else x
    wide = any(one.dtype == torch.float64 for one in xs)
    assert got.dtype == (torch.float64 if wide else torch.float32)
    assert got.device == xs[0].device
    expected = yardstick(x if values is None else values, p)
    if squared:
        expected = expected**2
    assert_close(got.cpu().double(), expected, **tolerance(got.dtype, p, squared=squared))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms(shape, dtype, p, device):
    x = random(shape, dtype, device)
    check(x, p)
    check(fenced(x), p, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (7,), (13, 129), (1, PART + 1)], ids=str)
def test_squared(shape, dtype, p, device):
    check(random(shape, dtype, device), p, squared=True)


@pytest.mark.skipif(INTERPRET, reason="a block is a matter of the reference")
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize(
    "shape", [(3, 6 * _CACHED + 5), (17, _CACHED), (17 * _CACHED // 5, 5)], ids=str
)
def test_several_blocks_of_the_reference(shape, p):
    x = random(shape, torch.bfloat16)
    x[0, 0] = x[1, -1] = 100  # at both ends, the largest of their rows
    check(x, p)
    check(LAYOUTS["transposed"](x), p, x, squared=True)


# Shapes and dtypes of the tensors that hold a row together.
HALF, BRAIN, SINGLE, DOUBLE = DTYPES
LISTS = {
    "one": [((5, 3), SINGLE)],
    "two": [((5, 3), SINGLE), ((5, 2, 4), SINGLE)],
    "three of three dtypes": [((7, 3), HALF), ((7,), SINGLE), ((7, 2, 4), BRAIN)],
    "halves": [((7, 3), HALF), ((7, 5), BRAIN)],
    "a wide one last": [((3, 1031), SINGLE), ((3, 2), HALF), ((3, 4), DOUBLE)],
    "a wide one first": [((3, 1), DOUBLE), ((3, 1031), SINGLE)],
    "no rows": [((0, 3), SINGLE), ((0, 2, 4), HALF)],
    "empty ones": [((5, 0), SINGLE), ((5, 2, 0), HALF)],
    "an empty one first": [((5, 0), SINGLE), ((5, 9), BRAIN)],
    "all but one empty": [((5, 0), HALF), ((5, 9), SINGLE), ((5, 3, 0), SINGLE)],
    "an empty wide one": [((5, 9), SINGLE), ((5, 0), DOUBLE)],
    "empty, one of them wide": [((5, 0), SINGLE), ((5, 0), DOUBLE)],
    "a long one": [((2, 3), SINGLE), ((2, PART + 9), SINGLE)],
    "long ones": [((1, PART + 1), HALF), ((1, PART), BRAIN), ((1, PART + 5), SINGLE)],
}


def random_list(name, device="cpu"):
    return [
        random(shape, dtype, device) * (number + 1)
        for number, (shape, dtype) in enumerate(LISTS[name])
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("squared", [False, True], ids=["norms", "squares"])
@pytest.mark.parametrize("name", LISTS)
def test_rows_of_several_tensors(name, squared, p, device):
    xs = random_list(name, device)
    check([fenced(x) for x in xs], p, xs, squared=squared)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
def test_order_and_layout_of_several_tensors(p, device):
    xs = random_list("three of three dtypes", device)
    for order in itertools.permutations(xs):
        check(list(order), p, xs)
    check([LAYOUTS["transposed"](x) for x in xs], p, xs)
    # One tensor may come twice, and be any part of another.
    check([xs[2], xs[2], xs[2][:, 0]], p)
    assert torch.equal(row_norms(tuple(xs), p), row_norms(xs, p))


@pytest.mark.parametrize("device", DEVICES)
def test_several_tensors_are_summed_in_the_dtype_of_the_result(device):
    # Neither the squares nor the digits of their sum fit float32.
    x = torch.full((1, 3), 2.0**100, device=device)
    wide = torch.full((1, 1), 2.0**60, dtype=torch.float64, device=device)
    for xs in ([x, wide], [wide, x], [x.bfloat16(), wide]):
        for p in P:
            check(xs, p)
            check(xs, p, squared=True)


LAYOUTS = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed, fenced": lambda x: fenced(x.movedim(0, -1)).movedim(-1, 0),
    "trailing dimensions reversed": lambda x: (
        x.permute(0, *range(x.ndim - 1, 0, -1)).contiguous().permute(0, *range(x.ndim - 1, 0, -1))
    ),
    "every other element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "flipped storage": lambda x: fenced(x.flip(-1)).flip(-1),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(67, 5), (3, 1000), (65, 600), (5, 3, 17, 19)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, shape, dtype, device):
    # One p: which elements are read does not depend on it.
    x = random(shape, dtype, device)
    check(LAYOUTS[layout](x), 2, x)


@pytest.mark.parametrize("device", DEVICES)
def test_expanded(device):
    check(random((1, 33), device=device).expand(70, 33), 2)
    check(random((70, 1), device=device).expand(70, 33), 2)
    check(random((3, 1, 5), device=device).expand(3, 7, 5), 2)
    check(random((1,), device=device).expand(3, 40009), 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "stride"), [((3, 5), (2**30, 1)), ((1, 3), (1, 2**30))])
def test_offsets_beyond_32_bits(shape, stride, device):
    # 4 GB of address space, of which a few pages are touched.
    storage = torch.empty(2**31 + 5, dtype=torch.float16, device=device)
    x = storage.as_strided(shape, stride)
    x.copy_(random(shape))
    check(x, 2)


@pytest.mark.parametrize("device", DEVICES)
def test_l2_norm_of_many_elements_does_not_drift(device):
    check(random((1, 1_400_003), device=device), 2)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("device", DEVICES)
def test_small_and_exact_values(device):
    x = torch.tensor([[3.0, 4.0], [0.0, -0.0]], device=device)
    assert row_norms(x).tolist() == [5, 0]
    # Squares of 1e-20 are subnormal: rounded to 1 part in 70,000, but not flushed to 0.
    tiny = torch.full((1, 100), 1e-20, device=device)
    assert_close(row_norms(tiny).item(), 1e-19, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 9, PART + 9])
def test_nan_and_infinity_propagate(n_cols, dtype, p, device):
    x = random((5, n_cols), dtype, device)
    x[0, 0] = x[1, -1] = math.nan
    x[2, 0], x[2, -1] = math.inf, math.nan
    x[3, -1] = -math.inf
    got = row_norms(x, p)
    assert got[:3].isnan().all()
    assert got[3] == math.inf
    assert_close(got[4:].cpu().double(), yardstick(x[4:], p), **tolerance(dtype, p))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(70, 33), (2, 20011)], ids=str)
def test_two_runs_are_bit_identical(shape, p, device):
    x = random(shape, device=device)
    assert torch.equal(row_norms(x, p), row_norms(x, p))
    xs = [x, x[:, :5].half()]
    assert torch.equal(row_norms(xs, p, squared=True), row_norms(xs, p, squared=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
def test_nan_and_infinity_of_any_tensor_propagate(p, device):
    for place in range(3):
        xs = random_list("three of three dtypes", device)
        xs[place].view(7, -1)[0, -1] = math.nan
        xs[place].view(7, -1)[1, 0] = -math.inf
        for squared in (False, True):
            got = row_norms(xs, p, squared=squared)
            assert got[0].isnan()
            assert got[1] == math.inf
            assert got[2:].isfinite().all()


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("shape", [(5, 1), (257, 7), (13, 129), (65, 300), (2, PART + 9)], ids=str)
def test_every_element_is_read_once_and_nothing_beyond(shape, layout, traffic):
    reads, writes = traffic
    x = random(shape) if layout == "contiguous" else LAYOUTS[layout](random(shape))
    row_norms(x)

    # Beside the input, what is read are the norms of parts, each after it was written, and what is
    # written but not read is the result.
    start = x.untyped_storage().data_ptr()
    assert sorted(set(reads) - set(writes)) == list(range(start, start + 4 * x.numel(), 4))
    assert len(reads) == len(set(reads))
    assert len(writes) == len(set(writes))
    assert len(set(writes) - set(reads)) == len(x)


@pytest.mark.parametrize("name", ["one", "three of three dtypes", "all but one empty"])
def test_every_tensor_is_read_once_and_nothing_beyond(name, traffic):
    reads, writes = traffic
    xs = random_list(name)
    row_norms(xs)
    elements = [
        address
        for x in xs
        for address in range(x.data_ptr(), x.data_ptr() + x.nbytes, x.element_size())
    ]
    assert sorted(set(reads) - set(writes)) == sorted(elements)
    assert len(reads) == len(set(reads))
    assert len(writes) == len(set(writes))
    assert len(set(writes) - set(reads)) == len(xs[0])


@pytest.mark.parametrize("shape", [(3, 4, 5), (3,), (3, 1)], ids=str)
def test_input_is_left_alone(shape):
    x, other = random(shape), random((3, 2))
    before, other_before = x.clone(), other.clone()
    for p, squared in itertools.product(P, [False, True]):
        for given in (x, [x], [x, x[:, :0] if x.ndim > 1 else x], [other, x]):
            row_norms(given, p, squared=squared).fill_(math.nan)
    assert torch.equal(x, before)
    assert torch.equal(other, other_before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
def test_a_row_does_not_depend_on_the_order_of_rows(p, device):
    xs = [random((67, 33), device=device), random((67, 5), torch.bfloat16, device)]
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(row_norms([x[order] for x in xs], p), row_norms(xs, p)[order])


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.row_norms")
    monkeypatch.setattr(module, "row_norms_reference" if INTERPRET else "_row_norms_triton", None)
    assert row_norms(torch.ones(2, 4)).tolist() == [2, 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(4, 33), (0, 3), (3, 0), (5,), (2, 3, 4, 5)], ids=str)
def test_opcheck(shape, p, device):
    x = random(shape, device=device)
    torch.library.opcheck(_row_norms_op, ([x], float(p), False))
    torch.library.opcheck(_row_norms_op, ([x.bfloat16(), x], float(p), True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LISTS)
def test_opcheck_of_several_tensors(name, device):
    torch.library.opcheck(_row_norms_op, (random_list(name, device), 1.0, True))


def test_meta_device():
    x = torch.empty(3, 4, dtype=torch.float16, device="meta")
    got = row_norms(x)
    assert (got.shape, got.dtype, got.device.type) == ((3,), torch.float32, "meta")
    for wide in (x.double(), x[:, :0].double()):
        got = row_norms([x, wide], squared=True)
        assert (got.shape, got.dtype, got.device.type) == ((3,), torch.float64, "meta")


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("in_dim", [0, 1, 2, 3])
def test_vmap(in_dim, p):
    x = random((2, 3, 4, 5))
    got = vmap(lambda x: row_norms(x, p), in_dims=in_dim)(x)
    assert_close(got, torch.stack([row_norms(part, p) for part in x.unbind(in_dim)]))


def test_nested_vmap():
    x = random((2, 3, 4, 5))
    assert_close(vmap(vmap(row_norms))(x), x.square().sum(-1).sqrt())
    assert_close(vmap(vmap(row_norms))(x[..., 0]), x[..., 0].abs())


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (2, 1), (0, 2), (1, None), (None, 1)], ids=str)
def test_vmap_over_several_tensors(in_dims, p):
    def norms(x, y):
        return row_norms([x, y, x[:, :0]], p, squared=True)

    batches = random((4, 3, 5)), random((4, 3, 2), torch.bfloat16)
    moved = [
        batch[0] if dim is None else batch.movedim(0, dim)
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    parts = [
        batch[:1].expand_as(batch) if dim is None else batch
        for batch, dim in zip(batches, in_dims, strict=True)
    ]
    expected = torch.stack([norms(*pair) for pair in zip(*parts, strict=True)])
    assert_close(vmap(norms, in_dims=in_dims)(*moved), expected)
    # Once more around it, over what is outermost then.
    twice = vmap(vmap(norms, in_dims=in_dims))(*(torch.stack([x, 2 * x]) for x in moved))
    assert_close(twice, torch.stack([expected, 4 * expected]))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(row_norms, fullgraph=True)
    for n, p in itertools.product([3, 4, 7], P):
        x = random((n, 2, 5), device=device)
        assert torch.equal(compiled(x, p), row_norms(x, p))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "several",
    [lambda x, y: [x, y], lambda x, y: (y, x, x[:, :0]), lambda x, y: [x, x]],
    ids=["two", "three", "one twice"],
)
def test_compiled_with_several_tensors(several, device):
    torch.compiler.reset()
    compiled = torch.compile(row_norms, fullgraph=True, backend="aot_eager")
    for n, p, squared in [(3, 1, False), (4, 2, True), (7, 2, True), (7, math.inf, True)]:
        xs = several(random((n, 2, 5), device=device), random((n, 3), torch.float16, device))
        assert torch.equal(compiled(xs, p, squared=squared), row_norms(xs, p, squared=squared))


def test_compiled_on_gradients():
    def gradient_norms(weight, inputs):
        gradients = vmap(grad(lambda w, x: (w * x).sin().sum()), in_dims=(None, 0))(weight, inputs)
        return row_norms(gradients)

    torch.compiler.reset()
    weight, inputs = random((5,)), random((6, 5))
    compiled = torch.compile(gradient_norms, fullgraph=True, backend="aot_eager")
    assert_close(compiled(weight, inputs), gradient_norms(weight, inputs))


@pytest.mark.parametrize(
    ("error", "x", "p", "message"),
    [
        (
            ValueError, torch.tensor(1.0), 2,
            "x must have shape (n, ...), got a 0-d tensor; for one row, pass x[None]",
        ),
        (
            TypeError, torch.ones(2, 2, dtype=torch.int64), 2,
            "x must be float16, bfloat16, float32 or float64, got torch.int64; "
            "convert it, for example by x.float()",
        ),
        (
            TypeError, torch.ones(2, 2, dtype=torch.complex64), 2,
            "x must be float16, bfloat16, float32 or float64, got torch.complex64; "
            "convert it, for example by x.float()",
        ),
        (
            ValueError, [], 2,
            "x must hold at least one tensor, got none; there is no row to measure",
        ),
        (
            ValueError, [torch.ones(2, 2), torch.ones(2), torch.ones(3, 2)], 2,
            "x must have equally many rows in each tensor, got 2 and 3",
        ),
        (
            ValueError, [torch.ones(2, 2), torch.tensor(1.0)], 2,
            "x must have shape (n, ...), got a 0-d tensor; for one row, pass x[None]",
        ),
        (
            TypeError, [torch.ones(2, 2), torch.ones(2, dtype=torch.int32)], 2,
            "x must be float16, bfloat16, float32 or float64, got torch.int32; "
            "convert it, for example by x.float()",
        ),
        (
            TypeError, [torch.ones(2, 2), torch.ones(2, 2, device="meta")], 2,
            "x must be on one device, got cpu and meta",
        ),
        *(
            (
                TypeError, x, 2,
                f"x must be a tensor or a sequence of tensors, got {what}; "
                "convert it, for example by torch.as_tensor",
            )
            for x, what in (
                (1.0, "float"),
                (None, "NoneType"),
                (torch.ones(2, 2).numpy(), "ndarray"),
                ([torch.ones(2, 2), 3.0], "float among its elements"),
                ([[1.0, 2.0]], "list among its elements"),
            )
        ),
        *(
            (
                ValueError, torch.ones(2, 2), p,
                f"p must be 1, 2 or math.inf, got {p!r}; for others, use torch.linalg.vector_norm",
            )
            for p in (3, -math.inf, math.nan, "fro")
        ),
    ],
)  # fmt: skip
def test_errors(error, x, p, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        row_norms(x, p)


@pytest.mark.parametrize(
    "derive",
    [
        lambda x: jvp(row_norms, (x,), (x,)),
        lambda x: jvp(lambda y: row_norms([x, y]), (x,), (x,)),
        jacfwd(row_norms),
    ],
)
def test_no_forward_derivative(derive):
    message = (
        "row_norms has no forward-mode derivative, got x with a tangent; pass x.detach(), or "
        "use torch.linalg.vector_norm inside the differentiated function"
    )
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        derive(random((3, 4)))


def test_detached_under_forward_differentiation():
    x = random((3, 4))
    value, tangent = jvp(lambda x: row_norms(x.detach()) + x[:, 0], (x,), (x,))[:2]
    assert_close(value, row_norms(x) + x[:, 0])
    assert_close(tangent, x[:, 0])


def test_no_backward_derivative():
    x = random((3, 4)).requires_grad_()
    for given in (x, [x.detach(), x]):
        norms = row_norms(given)
        with pytest.raises(RuntimeError, match=r"backward through memtools.row_norms.*no autograd"):
            norms.sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import row_norms
        print(row_norms(torch.tensor([[3.0, 4.0]])).item())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "5.0\n"), run.stderr
