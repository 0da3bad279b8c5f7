"""`gini` against integer arithmetic, on the reference or the interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import importlib
import math
import re
import subprocess
import sys
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from memtools_kernels import gini
from memtools_kernels.gini import _STEPS, _TILE, INTERPRET, _gini_op
from torch.func import grad, jacfwd, jvp, vmap
from torch.testing import assert_close

# NumPy, which interprets kernels, warns of what IEEE arithmetic defines.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PART = _STEPS * _TILE  # a program's share of a row

SHAPES = [
    (0, 1), (0, 5), (1, 1), (7, 1), (3, 2), (33, 3), (13, 31), (13, 32), (13, 33),
    (2, _TILE - 1), (2, _TILE), (2, _TILE + 1), (1, 3 * _TILE + 5),
    (1, PART - 1), (1, PART), (2, PART + 1), (1, 2 * PART + 13),
]  # fmt: skip


def truth(values, weights=None):
    """The coefficient of one row, rounded once: sums of integers are exact."""
    weights = [1.0] * len(values) if weights is None else weights
    ordered = sorted((whole(v), whole(w)) for v, w in zip(values, weights, strict=True))
    until = list(accumulate((w for _, w in ordered), initial=0))
    held = [w * v for v, w in ordered]
    if not sum(held):
        return 0.0
    ranks = (before + after - until[-1] for before, after in pairwise(until))
    spread = sum(one * rank for one, rank in zip(held, ranks, strict=True))
    return spread / (until[-1] * sum(held))


def whole(number):
    """A float times 2 ** 1200, of which any is an integer."""
    mantissa, exponent = math.frexp(number)
    return int(mantissa * 2**53) << (exponent + 1147)


# Each of the n operations that one value or weight goes through, in a sum that adds one by one,
# rounds by at most a factor of 1 ± eps / 2 in float64. Ranks are between -W and W, so the spread is
# off by at most as much as W times the sum of all that is held, which it is divided by: 3 n / 2 for
# the ranks (a cumulative sum twice, and its end), n / 2 for each of the spread, the total and the
# size, 8 for all else. Then it is rounded to the dtype of the result.
def tolerance(dtype, n) -> dict[str, Any]:
    rounding = torch.finfo(accumulator(dtype)).eps / 2
    eps = torch.finfo(torch.float64).eps
    return {"rtol": rounding, "atol": (3 * n + 8) * eps}


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def random(shape, dtype=torch.float32, device="cpu"):
    """Values over some orders of magnitude, and weights of which a few are zero."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).exp()
    weights = torch.rand(shape, generator=generator, dtype=torch.float64).sub(0.1).clamp_min(0)
    return values.to(device, dtype), weights.to(device, dtype)


def least(dtype):
    """The smallest positive number; the interpreter misreads subnormal ones of bfloat16."""
    info = torch.finfo(dtype)
    return info.tiny if INTERPRET and dtype == torch.bfloat16 else info.tiny * info.eps


def fenced(x):
    """The same values amid NaN, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], math.nan)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


def check(values, weights=None, layouts=(lambda x: x,)):
    """Compare the coefficients of what is in some memory layouts with the exact ones."""
    rows = [values.tolist()] if weights is None else [values.tolist(), weights.tolist()]
    want = torch.tensor([truth(*row) for row in zip(*rows, strict=True)], dtype=torch.float64)
    for layout in layouts:
        got = gini(layout(values), None if weights is None else layout(weights))
        assert got.dtype == accumulator(values.dtype)
        assert got.device == values.device
        assert_close(got.cpu().double(), want, **tolerance(values.dtype, values.shape[1]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coefficients(shape, dtype, weighted, device):
    values, weights = random(shape, dtype, device)
    check(values, weights if weighted else None, [lambda x: x, fenced])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("of_weights", DTYPES, ids=str)
@pytest.mark.parametrize("of_values", DTYPES, ids=str)
def test_values_and_weights_of_two_dtypes(of_values, of_weights, device):
    values, weights = random((5, 21), torch.float64, device)
    check(values.to(of_values), weights.to(of_weights))


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "transposed, fenced": lambda x: fenced(x.t()).t(),
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 7), (31, 5), (3, _TILE + 9), (2, PART + 3)], ids=str)
def test_any_strides(shape, device):
    values, weights = random(shape, device=device)
    check(values, layouts=LAYOUTS.values())
    check(values, weights, LAYOUTS.values())
    for layout in LAYOUTS.values():  # of one argument
        assert torch.equal(gini(layout(values), weights), gini(values, weights))
        assert torch.equal(gini(values, layout(weights)), gini(values, weights))


@pytest.mark.parametrize("device", DEVICES)
def test_expanded(device):
    values, weights = random((6, 33), device=device)
    check(values[:1].expand(6, -1))
    check(values[:1].expand(6, -1), weights)
    check(values, weights[:1].expand(6, -1))
    check(values[:, :1].expand(-1, 33), weights)
    check(values, weights[:, 1:2].expand(-1, 33))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "stride"), [((3, 5), (2**30, 1)), ((2, 3), (1, 2**30))])
def test_offsets_beyond_32_bits(shape, stride, device):
    # 4 GB of address space, of which a few pages are touched.
    storage = torch.empty(2**31 + 5, dtype=torch.float16, device=device)
    far = storage.as_strided(shape, stride)
    values, weights = random(shape, torch.float16, device)
    check(values, layouts=[far.copy_])
    far.copy_(weights)
    assert torch.equal(gini(values, far), gini(values, weights))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 5, 300, 3000])
def test_whole_weights_are_repetitions(n, dtype, device):
    values = random((1, n), dtype, device)[0]
    times = torch.arange(3, n + 3, device=device) % 7
    repeated = values.repeat_interleave(times, 1)
    within = tolerance(dtype, repeated.shape[1])
    within["rtol"] *= 2  # both are rounded
    assert_close(gini(values, times[None].to(dtype)), gini(repeated), **within)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 9, _TILE, PART + 3])
def test_nothing_and_everything(n, dtype, device):
    # None has anything; all have as much; one has it all, wherever it is.
    values = torch.zeros((5, n), dtype=dtype, device=device)
    values[1] = 3.0
    values[2, 0] = values[3, -1] = values[4, n // 2] = 3.0
    want = torch.tensor([0, 0, *[1 - 1 / n] * 3], dtype=torch.float64)
    within = tolerance(dtype, n)
    assert_close(gini(values).cpu().double(), want, **within)
    assert_close(gini(values, torch.full_like(values, 7)).cpu().double(), want, **within)
    assert gini(values)[0] == gini(values, values)[0] == 0
    assert gini(-torch.zeros_like(values)).eq(0).all()
    # None counts; one counts; those count that have nothing.
    weights = torch.zeros_like(values)
    assert gini(values, weights).eq(0).all()
    weights[:, n // 2] = 3.0
    assert_close(gini(values, weights).cpu().double(), torch.zeros_like(want), **within)
    assert gini(values, (values == 0).to(dtype)).eq(0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [3, _TILE + 1, PART + 9])
def test_values_of_any_size(n, dtype, device):
    info = torch.finfo(dtype)
    values, weights = random((1, n), dtype, device)
    fractions = values / values.max()
    for scale in (info.max, info.tiny / info.eps, 8 * least(dtype)):
        scaled = (fractions * scale).clamp_min(least(dtype))
        check(scaled)
        check(scaled, weights)
    # All in one row.
    values[0, 0], values[0, 1], values[0, 2] = info.max, info.tiny, least(dtype)
    check(values)
    check(values, weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [3, _TILE + 1])
def test_weights_of_any_size(n, dtype, device):
    info = torch.finfo(dtype)
    values, weights = (x / x.max() for x in random((1, n), dtype, device))
    for scale in (info.max, math.sqrt(info.max), math.sqrt(info.tiny), 8 * least(dtype)):
        scaled = torch.where(weights > 0, (weights * scale).clamp_min(least(dtype)), 0.0)
        check(values, scaled)
        check(values * info.max, scaled)
    check(values, torch.full_like(values, least(dtype)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("absent", ["zero", "least", "largest"])
def test_a_value_of_no_weight_is_as_good_as_absent(absent, dtype, device):
    tiny = least(dtype)
    value = {"zero": 0.0, "least": tiny, "largest": torch.finfo(dtype).max}[absent]
    values = torch.tensor([[tiny, value, 3 * tiny]], dtype=dtype, device=device)
    weights = torch.tensor([[1.0, 0.0, 1.0]], dtype=dtype, device=device)
    check(values, weights)
    assert_close(gini(values, weights), gini(values[:, ::2]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 21), (2, PART + 3)], ids=str)
def test_neither_scale_nor_order_matters(shape, dtype, device):
    values, weights = random(shape, dtype, device)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(0)).to(device)
    got = gini(values)
    for same in (values * 2**10, values / 2**10, values[:, order]):
        assert torch.equal(gini(same), got)
    assert torch.equal(gini(values / 2**10, weights * 2**10), gini(values, weights))
    moved = gini(values[:, order], weights[:, order])
    # Equal values may change places, and with them the order in which their weights are added.
    assert_close(moved, gini(values, weights), **tolerance(dtype, shape[1]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(70, 3), (7, 333), (3, PART + 3)], ids=str)
def test_bits_depend_on_nothing_but_the_row(shape, weighted, device):
    values, weights = random(shape, torch.float64, device)
    args = (values, weights) if weighted else (values,)
    got = gini(*args)
    assert torch.equal(gini(*args), got)
    assert torch.equal(gini(*[x.flip(0) for x in args]), got.flip(0))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(5, 1), (3, 33), (2, _TILE + 9), (2, PART + 9)], ids=str)
def test_all_is_read_and_nothing_beyond(shape, weighted, traffic):
    reads, writes = traffic
    values, weights = random(shape, torch.float64)
    gini(values, weights if weighted else None)
    # Sorted values; with weights, these too, and their cumulative sums: each a piece of memory. A
    # spread and a total for each part are another.
    pieces = 3 if weighted else 1
    read, written = sorted(set(reads)), sorted(set(writes))
    assert len(read) == pieces * values.numel()
    assert sum(b - a != 8 for a, b in pairwise(read)) < pieces
    assert len(writes) == len(written) == 2 * shape[0] * -(-shape[1] // PART)
    assert all(b - a == 8 for a, b in pairwise(written))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_input_is_left_alone(dtype):
    values, weights = (x.sort(1).values for x in random((3, 40), dtype))  # sorting moves nothing
    before = values.clone(), weights.clone()
    gini(values).fill_(math.nan)
    gini(values, weights).fill_(math.nan)
    assert torch.equal(values, before[0])
    assert torch.equal(weights, before[1])


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_rounds_nothing(device):
    values, weights = random((4, 33), device=device)
    with torch.autocast(device, torch.bfloat16):
        got = gini(values), gini(values, weights)
    assert_close(got, (gini(values), gini(values, weights)), rtol=0, atol=0)


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.gini")
    monkeypatch.setattr(module, "gini_reference" if INTERPRET else "_gini_triton", None)
    assert gini(torch.tensor([[0.0, 0.0, 0.0, 1.0]])).tolist() == [0.75]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4, 33), (0, 3), (3, 1)], ids=str)
def test_opcheck(shape, weighted, device):
    values, weights = random(shape, torch.bfloat16, device)
    torch.library.opcheck(_gini_op, (values, weights if weighted else None))
    values = LAYOUTS["transposed"](values.double())
    torch.library.opcheck(_gini_op, (values, weights if weighted else None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_device(dtype):
    values = torch.empty(3, 4, dtype=dtype, device="meta")
    for got in (gini(values), gini(values, values.double())):
        assert (got.shape, got.dtype, got.device.type) == ((3,), accumulator(dtype), "meta")


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_vmap(in_dim):
    values = random((2, 3, 4))[0]
    got = vmap(gini, in_dim)(values)
    assert_close(got, torch.stack([gini(part) for part in values.unbind(in_dim)]))


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 0), (2, 1), (0, None), (None, 2)], ids=str)
def test_vmap_with_weights(in_dims):
    whole_args = random((3, 3, 3), torch.float64)
    args = [x[0] if dim is None else x for x, dim in zip(whole_args, in_dims, strict=True)]
    each = [[x] * 3 if dim is None else x.unbind(dim) for x, dim in zip(args, in_dims, strict=True)]
    want = torch.stack([gini(*one) for one in zip(*each, strict=True)])
    assert_close(vmap(gini, in_dims)(*args), want)


def test_nested_vmap():
    values, weights = random((2, 3, 4, 5))
    want = gini(values.flatten(0, 2), weights.flatten(0, 2)).view(2, 3, 4)
    assert_close(vmap(vmap(gini))(values, weights), want)
    got = vmap(vmap(gini, in_dims=(0, None)), in_dims=(None, 0))(values[0], weights[0])
    want = torch.stack([torch.stack([gini(v, w) for v in values[0]]) for w in weights[0]])
    assert_close(got, want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled(weighted, device):
    torch.compiler.reset()
    compiled = torch.compile(gini, fullgraph=True, backend="aot_eager")
    for shape in [(3, 5), (4, 5), (7, 9)]:
        args = random(shape, device=device)[: 1 + weighted]
        assert torch.equal(compiled(*args), gini(*args))


def test_compiled_on_outputs_of_transforms():
    def inequality(weight, inputs):
        gradients = vmap(grad(lambda w, x: (w * x).sin().sum()), in_dims=(None, 0))(weight, inputs)
        return gini(gradients.abs())

    torch.compiler.reset()
    weight, inputs = torch.linspace(-2, 2, 5), random((6, 5))[0]
    compiled = torch.compile(inequality, fullgraph=True, backend="aot_eager")
    assert_close(compiled(weight, inputs), inequality(weight, inputs))


TYPES = "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("error", "values", "weights", "message"),
    [
        *(
            (
                ValueError, torch.ones(shape), None,
                f"values must have shape (k, n) with at least one value in a row, got {shape}; "
                "a single row is values[None]",
            )
            for shape in [(), (3,), (2, 0), (0, 0), (2, 3, 4)]
        ),
        *(
            (
                ValueError, torch.ones(2, 3), torch.ones(shape),
                f"weights must have the shape of values, (2, 3), got {shape}",
            )
            for shape in [(), (3,), (2, 1), (1, 3), (3, 2)]
        ),
        *(
            (
                TypeError, torch.ones(2, 3, dtype=dtype), None,
                f"values must be {TYPES} on cpu, got {dtype} on cpu",
            )
            for dtype in [torch.int64, torch.bool, torch.complex64]
        ),
        *(
            (
                TypeError, torch.ones(2, 3), torch.ones(2, 3, dtype=dtype, device=device),
                f"weights must be {TYPES} on cpu, got {dtype} on {device}",
            )
            for dtype, device in [(torch.int64, "cpu"), (torch.float32, "meta")]
        ),
    ],
)  # fmt: skip
def test_errors(error, values, weights, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        gini(values, weights)


@pytest.mark.parametrize("derive", [lambda f, x: jvp(f, (x,), (x,)), lambda f, x: jacfwd(f)(x)])
@pytest.mark.parametrize("name", ["values", "weights"])
def test_no_forward_derivative(name, derive):
    values, weights = random((3, 4))
    message = (
        f"gini has no forward-mode derivative, got {name} with a tangent; pass {name}.detach()"
    )
    functions = {"values": lambda x: gini(x, weights), "weights": lambda x: gini(values, x)}
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        derive(functions[name], values)


def test_detached_under_forward_differentiation():
    x = random((3, 4))[0]
    value, tangent = jvp(lambda x: gini(x.detach(), x.detach()) + x[:, 0], (x,), (x,))[:2]
    assert_close(value, gini(x, x) + x[:, 0])
    assert_close(tangent, x[:, 0])


@pytest.mark.parametrize(("n_args", "which"), [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_backward_derivative(dtype, n_args, which):
    args = random((3, 4), dtype)[:n_args]
    want = gini(*args)
    args[which].requires_grad_()
    assert torch.equal(gini(*args).detach(), want)
    with pytest.raises(RuntimeError, match=r"backward through memtools.gini.*no autograd"):
        gini(*args).sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import gini
        print(gini(torch.tensor([[0.0, 0.0, 0.0, 1.0]])).item())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "0.75\n"), run.stderr
