"""`gini` against the formula in float64, on the reference or the interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import re

import pytest
import torch
from memtools_kernels import gini
from memtools_kernels.gini import _STEPS, _TILE, INTERPRET, _gini_op
from torch.func import jvp, vmap
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PART = _STEPS * _TILE  # a longer row takes several programs
SHAPES = [
    (0, 3), (1, 1), (3, 1), (2, 2), (5, 7), (3, 127), (2, _TILE - 1), (2, _TILE), (2, _TILE + 1),
    (1, PART - 1), (2, PART), (1, PART + 1), (1, 2 * PART + 77),
]  # fmt: skip
ON_EACH = pytest.mark.parametrize("device", DEVICES)


def tolerance(dtype, n):
    """Everything is summed in float64, over n terms of at most n, and rounded once."""
    once = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    return {"rtol": 0, "atol": once + n * torch.finfo(torch.float64).eps}


def yardstick(values, weights=None):
    found = []
    for i, row in enumerate(values.double().cpu()):
        v, order = row.sort()
        w = torch.ones_like(v) if weights is None else weights[i].double().cpu()[order]
        until = w.cumsum(0)
        total = (w * v).sum()
        spread = (w * v * (2 * until - w - until[-1])).sum()
        found.append(spread / (until[-1] * total) if total > 0 else torch.zeros(()).double())
    return torch.stack(found) if found else torch.zeros(0).double()


def random(shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def check(values, weights=None):
    got = gini(values, weights)
    assert got.dtype == (torch.float64 if values.dtype == torch.float64 else torch.float32)
    assert got.device == values.device
    want = yardstick(values, weights)
    assert_close(got.cpu().double(), want, **tolerance(values.dtype, values.shape[1]))


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows(shape, dtype, device):
    values = random(shape, dtype, device)
    check(values)
    check(values, random(shape, dtype, device, seed=1))


@ON_EACH
def test_integer_weights_are_repetitions(device):
    values = random((1, 40), torch.float64, device)
    counts = torch.arange(40, device=device) % 4
    repeated = values.repeat_interleave(counts, 1)
    assert_close(gini(values, counts.double()[None]), gini(repeated), rtol=1e-12, atol=0)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_values(dtype, device):
    n = 5
    equal = torch.full((1, n), 0.25, dtype=dtype, device=device)
    alone = torch.zeros(1, n, dtype=dtype, device=device)
    assert gini(torch.zeros_like(equal)).tolist() == [0]
    assert abs(gini(equal).item()) < 1e-15
    alone[0, 2] = torch.finfo(dtype).max
    assert_close(gini(alone).item(), (n - 1) / n, rtol=1e-7, atol=0)
    largest = torch.full_like(equal, torch.finfo(dtype).max)
    assert abs(gini(largest, equal).item()) < 1e-15


@ON_EACH
def test_any_strides(device):
    values, weights = random((9, 33), device=device), random((9, 33), device=device, seed=1)
    check(values.t().contiguous().t(), weights)
    check(values.repeat_interleave(2, 1)[:, ::2], weights.flip(0).contiguous().flip(0))
    check(values[:1].expand(4, -1), weights[:, :1].expand(-1, 33)[:4])


@ON_EACH
def test_two_runs_are_bit_identical_and_inputs_are_left_alone(device):
    values, weights = random((3, PART + 5), device=device), random((3, PART + 5), device=device)
    before = values.clone(), weights.clone()
    assert torch.equal(gini(values, weights), gini(values, weights))
    gini(values).fill_(-1)
    assert torch.equal(values, before[0])
    assert torch.equal(weights, before[1])


@ON_EACH
@pytest.mark.parametrize("shape", [(2, 5), (0, 3)], ids=str)
def test_opcheck(shape, device):
    values = random(shape, device=device)
    torch.library.opcheck(_gini_op, (values, None))
    torch.library.opcheck(_gini_op, (values.bfloat16(), values))


def test_meta_device():
    got = gini(torch.empty(3, 4, dtype=torch.float16, device="meta"))
    assert (got.shape, got.dtype, got.device.type) == ((3,), torch.float32, "meta")


def test_vmap():
    values, weights = random((2, 3, 5)), random((2, 5))
    want = torch.stack([gini(part) for part in values])
    assert torch.equal(vmap(gini)(values), want)
    assert torch.equal(vmap(gini, in_dims=1)(values.transpose(0, 1)), want)
    want = torch.stack([gini(part, weights) for part in values.unbind(1)])
    assert torch.equal(vmap(gini, in_dims=(1, None))(values, weights), want)


@ON_EACH
def test_compiled(device):
    torch.compiler.reset()
    compiled = torch.compile(gini, fullgraph=True, backend="aot_eager")
    for n in (3, 8):
        values, weights = random((2, n), device=device), random((2, n), device=device, seed=1)
        assert torch.equal(compiled(values), gini(values))
        assert torch.equal(compiled(values, weights), gini(values, weights))


KINDS = "float16, bfloat16, float32 or float64 on cpu"


@pytest.mark.parametrize(
    ("error", "values", "weights", "message"),
    [
        *(
            (
                ValueError, torch.zeros(shape), None,
                "values must have shape (k, n) with at least one value in a row, got "
                f"{shape}; a single row is values[None]",
            )
            for shape in [(3,), (2, 0), (1, 2, 3)]
        ),
        (
            ValueError, torch.zeros(2, 3), torch.zeros(2, 4),
            "weights must have the shape of values, (2, 3), got (2, 4)",
        ),
        (
            TypeError, torch.zeros(2, 3).long(), None,
            f"values must be {KINDS}, got torch.int64 on cpu",
        ),
        (
            TypeError, torch.zeros(2, 3), torch.zeros(2, 3, device="meta"),
            f"weights must be {KINDS}, got torch.float32 on meta",
        ),
    ],
)  # fmt: skip
def test_errors(error, values, weights, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        gini(values, weights)


def test_no_derivatives():
    values = random((2, 3))
    with pytest.raises(NotImplementedError, match=r"^gini has no forward-mode derivative"):
        jvp(gini, (values,), (values,))
    with pytest.raises(RuntimeError, match=r"no autograd"):
        gini(values.requires_grad_()).sum().backward()
