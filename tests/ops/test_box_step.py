"""`box_step` against float64 and Python integers, on the reference or the interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import importlib
import math
import re
import subprocess
import sys
from functools import cache

import pytest
import torch
from memtools_kernels import box_noise, box_step
from memtools_kernels.box_step import _CACHED, _LONGEST, _TILE, INTERPRET, _box_step_op
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NOISY = pytest.mark.parametrize("noisy", [False, True], ids=["no noise", "noise"])
ON_EACH = pytest.mark.parametrize("device", DEVICES)

SHAPES = [
    (0,), (1,), (7,), (_TILE + 1,),
    (0, 5), (5, 0), (0, 0), (3, 0, 4), (0, 3, 4),
    (1, 1), (3, 2), (2, 3), (_TILE // 2, 3), (_TILE // 2 + 1, 4), (5, 31), (5, 32), (5, 33),
    (3, 2 * _LONGEST - 1), (4, 2 * _LONGEST), (5, 2 * _LONGEST + 1), (1, 4 * _LONGEST + 3),
    (2, 3, 1, 5), (5, 3, 7, 9),
]  # fmt: skip

# The noise, in float32 with eps = 2^-23 (E), against exact arithmetic. Its angle: 2π is rounded,
# and the product with it: 2π E. Logarithm, cosine and sine are within 4 ulp (CUDA: 2, NumPy in the
# interpreter: 3.83), which is 2 E for the cosine and, halved by the square root, for the radius.
# The root and the last product are rounded: 1 E. Together below 12 E of the radius.
RADIUS = math.sqrt(48 * math.log(2))  # of the smallest uniform number, 2^-24
NOISE_ERROR = 12 * 2**-23 * RADIUS


@cache
def exact_noise(key, step, d):
    """The noise of one example, from unsigned integers as the docstring has it."""
    half, noise = (d + 1) // 2, {}
    for pair in range(half):
        bits = splitmix64(key, half * step + pair + 1)
        radius = math.sqrt(-2 * math.log(((bits >> 40) + 1) / 2**24))
        angle = 2 * math.pi * ((bits >> 16) % 2**24) / 2**24
        noise[pair], noise[half + pair] = radius * math.cos(angle), radius * math.sin(angle)
    return [noise[j] for j in range(d)]


def splitmix64(seed, number):
    z = (seed + number * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def exact(keys, steps, shape):
    d = math.prod(shape[1:])
    streams = zip(keys.tolist(), steps.tolist(), strict=True)
    rows = [exact_noise(key, step, d) for key, step in streams]
    return torch.tensor(rows, dtype=torch.float64).reshape(shape)


def random_keys(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator)


class Case:
    """Arguments of one step and what it should give."""

    def __init__(self, shape, dtype=torch.float32, device="cpu", *, noisy=True):
        generator = torch.Generator().manual_seed(math.prod(shape))
        n, example = shape[0], shape[1:]

        def draw(shape, dtype=dtype):
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
            return numbers.to(dtype)

        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        centres = draw(shape)
        self.points = centres + draw(shape) / 4
        self.gradients = draw(shape) * (draw(shape) > -1)  # some are 0
        self.low, self.high = centres - 1, centres + 1
        self.options = {"unit": draw(example, accumulator).abs()}
        self.options["sizes"] = draw((n,), accumulator).abs()
        if noisy:
            self.options["noise"] = draw(example, accumulator).abs() / 2
            self.options["keys"] = random_keys(n, seed=1)
            self.options["steps"] = torch.arange(n) ** 3
        self.tensors = [self.points, self.gradients, self.low, self.high]
        self.tensors = [x.to(device) for x in self.tensors]
        self.options = {name: x.to(device) for name, x in self.options.items()}

    def expected(self):
        """The step in float64, and how far off a result may be, of each element."""
        x, g, low, high = (x.double().cpu() for x in self.tensors)
        options = {name: value.cpu() for name, value in self.options.items()}
        sizes = options["sizes"].double().reshape(-1, *[1] * (x.ndim - 1))
        push = sizes * options["unit"].double() * ((g > 0).double() - (g < 0).double())
        kick = torch.zeros_like(x)
        noise = options.get("noise")
        error = 0.0
        if noise is not None:
            kick = noise.double() * exact(options["keys"], options["steps"], x.shape)
            error = noise.double() * NOISE_ERROR
        # Four roundings in the accumulator, then one to the dtype, for which the interpreter
        # truncates. The clamp in between makes no error larger.
        dtype = self.tensors[0].dtype
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        error = error + 2 * eps * (x.abs() + push.abs() + kick.abs())
        moved = (x + push + kick).clamp(low, high)
        if dtype in (torch.float16, torch.bfloat16):
            error = error + torch.finfo(dtype).eps * (moved.abs() + torch.finfo(dtype).tiny)
        return moved, error

    def check(self, tensors=None, options=None):
        """Take the step, with the values in some other memory layout if so given."""
        expected, error = self.expected()
        points, *others = tensors or self.tensors
        # The reference leaves all but the points alone, whatever their layout; so does a kernel.
        before = [x.clone() for x in others]
        assert box_step(points, *others, **(options or self.options)) is None
        for x, old in zip(others, before, strict=True):
            assert torch.equal(x, old)
        off = (points.double().cpu() - expected).abs()
        assert (off <= error).all(), (off - error).max()
        assert (others[1] <= points).all()
        assert (points <= others[2]).all()


def fenced(x):
    """The same values between two rows of NaN, so that reading out of bounds shows."""
    buffer = x.new_full((len(x) + 2, *x.shape[1:]), math.nan)
    buffer[1:-1] = x
    return buffer[1:-1]


@ON_EACH
@NOISY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(shape, dtype, noisy, device):
    case = Case(shape, dtype, device, noisy=noisy)
    tensors = [fenced(x) for x in case.tensors]
    options = dict(case.options, sizes=fenced(case.options["sizes"]))
    for name in ("unit", "noise"):
        if name in options and options[name].ndim:
            options[name] = fenced(options[name])
    case.check(tensors, options)
    fences = tensors[0]._base
    assert fences is not None
    assert fences[[0, -1]].isnan().all()


@pytest.mark.skipif(INTERPRET, reason="a block is a matter of the reference")
@NOISY
@pytest.mark.parametrize("shape", [(3, _CACHED + 3), (_CACHED + 3,), (5, _CACHED // 2 - 1)])
def test_several_blocks_of_the_reference(shape, noisy):
    case = Case(shape, noisy=noisy)
    points = case.tensors[0].clone()
    box_step(points, *case.tensors[1:], **case.options)
    for i in {0, 1, 2, len(points) - 1}:
        row = [x[i : i + 1].clone() for x in case.tensors]
        of_one = {"sizes", "keys", "steps"}
        options = {k: v[i : i + 1] if k in of_one else v for k, v in case.options.items()}
        box_step(*row, **options)
        assert torch.equal(row[0][0], points[i])


@ON_EACH
@pytest.mark.parametrize("shape", [(), (1,), (9,), (7, 1), (3, 1, 1), (1, 1, 9), (3, 7, 9)])
def test_unit_and_noise_broadcast(shape, device):
    case = Case((5, 3, 7, 9), device=device)
    given = dict(case.options)
    for name in ("unit", "noise"):
        given[name] = case.options[name].flatten()[: math.prod(shape)].reshape(shape)
        case.options[name] = given[name].expand(3, 7, 9)
    case.check(options=given)


LAYOUTS = {
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other element": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
}


@ON_EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_but_of_the_points(layout, dtype, device):
    case = Case((5, 3, 7, 9), dtype, device)
    points, *others = case.tensors
    options = {
        name: x if name in ("unit", "noise") else x.repeat_interleave(2)[::2]
        for name, x in case.options.items()
    }
    case.check([points, *map(LAYOUTS[layout], others)], options)


@ON_EACH
def test_expanded(device):
    case = Case((6, 10), device=device)
    points, _, low, high = case.tensors
    one = case.tensors[1][:1]
    low, high = low.amin().expand(6, 10), high.amax().expand(6, 10)
    case.tensors = [points, one.expand(6, 10), low, high]
    for name in ("sizes", "keys", "steps"):
        case.options[name] = case.options[name][3].expand(6)
    case.check()


@ON_EACH
def test_floating_options_are_converted(device):
    case = Case((6, 10), torch.float64, device)
    want = case.tensors[0].clone()
    box_step(want, *case.tensors[1:], **case.options)
    halves = {"unit": 0.5, "sizes": 0.25, "noise": 0.125}
    got, want = case.tensors[0].clone(), case.tensors[0].clone()
    for points, dtype in ((got, torch.bfloat16), (want, torch.float64)):
        options = {
            name: torch.full_like(case.options[name], value, dtype=dtype)
            for name, value in halves.items()
        }
        box_step(points, *case.tensors[1:], **case.options | options)
    assert torch.equal(got, want)


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_within_the_bounds_exactly(dtype, device):
    case = Case((40, 25), dtype, device)
    points, gradients, low, high = case.tensors
    case.options["sizes"] = case.options["sizes"] * 1000
    case.options["unit"] = torch.ones_like(case.options["unit"])
    box_step(*case.tensors, **case.options)
    assert torch.equal(points[gradients > 0], high[gradients > 0])
    assert torch.equal(points[gradients < 0], low[gradients < 0])
    assert ((low <= points) & (points <= high)).all()


@ON_EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype, device):
    nan, inf = math.nan, math.inf
    tiny = torch.finfo(dtype).smallest_normal
    rows = torch.tensor(
        [
            # point, gradient, low, high, result
            [0.5, nan, -1, 1, 0.5],
            [0.5, -nan, -1, 1, 0.5],
            [0.5, 0.0, -1, 1, 0.5],
            [0.5, -0.0, -1, 1, 0.5],
            [0.5, inf, -1, 1, 0.75],
            [0.5, -inf, -1, 1, 0.25],
            [0.5, tiny, -1, 1, 0.75],
            [0.5, -tiny, -1, 1, 0.25],
            [0.5, 1, -inf, inf, 0.75],
            [0.5, 1, 0.5, 0.5, 0.5],
            [0.5, 1, 2, 1, 1],  # the upper bound has the last word
            [inf, -1, -1, 1, 1],
            [-inf, 1, -inf, inf, -inf],
            [nan, 1, -1, 1, nan],
            [0.5, 1, nan, 1, nan],
            [0.5, 1, -1, nan, nan],
        ],
        device=device,
        dtype=torch.float64,
    ).to(dtype)
    *tensors, expected = rows.t().contiguous().unbind()
    sizes = torch.full((len(rows),), 0.25, device=device)
    box_step(*tensors, unit=torch.tensor(1.0, device=device), sizes=sizes)
    assert_close(tensors[0], expected, rtol=0, atol=0, equal_nan=True)


@ON_EACH
@NOISY
def test_two_runs_are_bit_identical(noisy, device):
    case = Case((70, 33), device=device, noisy=noisy)
    first, second = case.tensors[0].clone(), case.tensors[0].clone()
    for points in (first, second):
        box_step(points, *case.tensors[1:], **case.options)
    assert torch.equal(first, second)


@NOISY
@pytest.mark.parametrize("shape", [(5, 1), (_TILE + 1, 2), (13, 31), (3, 4 * _LONGEST + 3)])
def test_every_element_is_read_and_written_once_and_nothing_beyond(shape, noisy, traffic):
    reads, writes = traffic
    case = Case(shape, noisy=noisy)
    box_step(*case.tensors, **case.options)

    def addresses(x):
        size = x.element_size()
        return range(x.data_ptr(), x.data_ptr() + x.numel() * size, size)

    elements = {address for x in case.tensors for address in addresses(x)}
    small = {address for x in case.options.values() for address in addresses(x)}
    assert sorted(writes) == list(addresses(case.tensors[0]))
    assert sorted(a for a in reads if a in elements) == sorted(elements)
    assert set(reads) == elements | small


@pytest.mark.skipif(not INTERPRET, reason="runs one program of 4 million")
def test_offsets_beyond_32_bits(monkeypatch):
    # The last program of a launch over 2^31 + 8 elements: 10 GB of address space, of which a few
    # pages are touched.
    from triton.runtime.interpreter import InterpreterBuilder

    module = importlib.import_module("memtools_kernels.box_step")
    kernel, n, d = module._box_step_kernel, 2**29 + 2, 4

    class Last:
        def __getitem__(self, grid):
            (programs,) = grid
            program_id = InterpreterBuilder.create_get_program_id

            def last(self, axis):
                first = program_id(self, axis)
                first.data = first.data + programs - 1
                return first

            monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", last)
            return kernel[(1,)]

    monkeypatch.setattr(module, "_box_step_kernel", Last())
    points, gradients = (torch.empty(n, d, dtype=torch.float16) for _ in range(2))
    sizes = torch.empty(n)
    points[-2:], gradients[-2:], sizes[-2:] = 0, 1, 0.5
    # From 0 to 1 a step of 0.5 is free.
    box_step(points, gradients, points, gradients, unit=torch.tensor(1.0), sizes=sizes)
    assert (points[-2:] == 0.5).all()


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.box_step")
    monkeypatch.setattr(module, "box_step_reference" if INTERPRET else "_box_step_triton", None)
    Case((3, 4)).check()


@ON_EACH
@NOISY
@pytest.mark.parametrize("shape", [(4, 33), (0, 3), (3, 0), (5,), (2, 3, 4, 5)], ids=str)
def test_opcheck(shape, noisy, device):
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(shape, dtype, device, noisy=noisy)
        options = case.options | {
            name: case.options[name].flatten() for name in ("unit", "noise") if name in case.options
        }
        names = ["unit", "sizes", "noise", "keys", "steps"]
        torch.library.opcheck(_box_step_op, (*case.tensors, *map(options.get, names)))


def test_meta_device():
    case = Case((3, 4), device="meta")
    assert box_step(*case.tensors, **case.options) is None


@ON_EACH
@NOISY
def test_compiled(noisy, device):
    torch.compiler.reset()

    def search(points, others, options):
        box_step(points, *others, **options)
        further = points * 2
        box_step(further, *others, **options)
        return further

    compiled = torch.compile(search, fullgraph=True)
    for n in (3, 4, 7):
        case = Case((n, 2, 5), device=device, noisy=noisy)
        points, *others = case.tensors
        eager = points.clone()
        want = search(eager, others, case.options)
        assert torch.equal(compiled(points, others, case.options), want)
        assert torch.equal(points, eager)


# The noise.


def test_the_oracle_is_splitmix64():
    # The first numbers of the seed with which implementations of SplitMix64 are commonly compared.
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, i) for i in (1, 2, 3)] == numbers


KEYS = [0, 1, -1, 2**63 - 1, -(2**63), 1234567, 0x1234567890ABCDEF]
STEPS = [0, 1, 2, 1000, 2**33 + 1, 2**62 + 12345, -1]


@ON_EACH
@pytest.mark.parametrize("d", [1, 2, 3, 8, 785])
def test_noise_is_what_integers_say(d, device):
    keys, steps = torch.tensor(KEYS), torch.tensor(STEPS)
    for _ in range(2):
        steps = steps.roll(1)
        got = box_noise(keys.to(device), steps.to(device), d)
        assert (got.shape, got.dtype, got.device.type) == ((len(keys), d), torch.float32, device)
        off = (got.double().cpu() - exact(keys, steps, got.shape)).abs().max()
        assert off <= NOISE_ERROR


@pytest.mark.parametrize(("n", "d"), [(0, 0), (0, 3), (3, 0)])
def test_no_noise_to_draw(n, d):
    assert box_noise(torch.zeros(n, dtype=torch.int64), torch.arange(n), d).shape == (n, d)


def drawn(keys, steps, d, dtype=torch.float32):
    """The noise, out of a step from 0 with nothing else to do, by the kernel if that is to run."""
    points = torch.zeros(len(keys), d, dtype=dtype, device=keys.device)
    bound = torch.full_like(points, math.inf)
    one = torch.ones((), device=keys.device)
    sizes = torch.ones(len(keys), device=keys.device)
    options = {"unit": one, "sizes": sizes, "noise": one, "keys": keys, "steps": steps}
    box_step(points, points.clone(), -bound, bound, **options)
    return points


@ON_EACH
@pytest.mark.parametrize("d", [1, 2, 3, 64, 131])
def test_noise_of_a_step(d, device):
    keys, steps = torch.tensor(KEYS, device=device), torch.tensor(STEPS, device=device)
    got = drawn(keys, steps, d)
    assert (got.double().cpu() - exact(keys, steps, got.shape)).abs().max() <= NOISE_ERROR
    if device == "cpu" and not INTERPRET:
        assert torch.equal(got, box_noise(keys, steps, d))


@ON_EACH
@pytest.mark.parametrize("d", [1, 5, 33])
def test_noise_does_not_depend_on_the_other_examples(d, device):
    n = _TILE + 19
    keys, steps = random_keys(n).to(device), torch.arange(n, device=device)
    noise = drawn(keys, steps, d)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(drawn(keys[order], steps[order], d), noise[order])
    for part in (order[:1], order[:7], order[7:]):
        assert torch.equal(drawn(keys[part], steps[part], d), noise[part])
    assert torch.equal(drawn(keys[:1].expand(n), steps[:1].expand(n), d), noise[:1].expand(n, d))


@ON_EACH
def test_every_dtype_sees_the_same_noise(device):
    keys, steps = random_keys(9).to(device), torch.arange(9, device=device)
    noise = drawn(keys, steps, 21)
    assert torch.equal(drawn(keys, steps, 21, torch.float64), noise.double())
    for dtype in (torch.float16, torch.bfloat16):
        got = drawn(keys, steps, 21, dtype).float()
        assert ((got - noise).abs() <= torch.finfo(dtype).eps * noise.abs()).all()


def test_noise_does_not_depend_on_the_default_dtype():
    keys, steps = random_keys(3), torch.arange(3)
    want, drawn_before = box_noise(keys, steps, 5), drawn(keys, steps, 5)
    torch.set_default_dtype(torch.float64)
    try:
        got = box_noise(keys, steps, 5)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        assert torch.equal(drawn(keys, steps, 5), drawn_before)
    finally:
        torch.set_default_dtype(torch.float32)


def test_steps_go_on_in_one_stream_without_overlap():
    # 4 steps of 10 elements are 20 pairs, and so is a step of 40 elements.
    keys = random_keys(3)
    short = torch.stack([box_noise(keys, torch.full((3,), step), 10) for step in range(4)], 1)
    cosines, sines = short.unflatten(-1, (2, 5)).unbind(2)
    long = box_noise(keys, torch.zeros_like(keys), 40)
    assert torch.equal(torch.cat([cosines.flatten(1), sines.flatten(1)], 1), long)


# How the noise is distributed: numbers of the reference, which those of a kernel are close to.
# A mean over N numbers of variance V is off by more than 5 sqrt(V / N) once in 1.7 million.

N = 1 << 20
DISTRIBUTION = pytest.mark.skipif(INTERPRET, reason="a matter of the reference")


def stream_of(name):
    """About a million numbers that differ in keys, in steps or in places, in a matrix."""
    root, zeros = 1 << 10, torch.zeros(1 << 10, dtype=torch.int64)
    match name:
        case "places":
            return box_noise(zeros[:1], zeros[:1], N).reshape(root, root)
        case "steps":
            return box_noise(torch.zeros(N, dtype=torch.int64), torch.arange(N), 1).view(root, root)
        case "successive keys":
            return box_noise(torch.arange(N), torch.zeros(N, dtype=torch.int64), 1).view(root, root)
        case "steps and places":
            return box_noise(zeros, torch.arange(root), root)
        case "successive keys and places":
            return box_noise(torch.arange(root), zeros, root)
        case "keys that differ in high bits, and places":
            return box_noise(torch.arange(root) << 54, zeros + 5, root)
        case _:
            return box_noise(random_keys(root), zeros, root)


STREAMS = pytest.mark.parametrize(
    "name",
    [
        "places", "steps", "successive keys", "steps and places", "successive keys and places",
        "keys that differ in high bits, and places", "random keys and places",
    ],
)  # fmt: skip


@DISTRIBUTION
@STREAMS
def test_moments_are_those_of_a_normal_distribution(name):
    x = stream_of(name).double()
    assert x.abs().max() <= RADIUS + NOISE_ERROR
    # Of x^k: the mean, and the variance (2k - 1)!! less the square of the mean.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        off = (x**power).mean() - mean
        assert abs(off) <= 5 * math.sqrt(variance / N), power


@DISTRIBUTION
@STREAMS
def test_distribution_is_normal(name):
    # Kolmogorov and Smirnov; Massart: sup |F_N - F| > t has a probability of at most
    # 2 exp(-2 N t^2), here 1e-6.
    levels = torch.special.ndtr(stream_of(name).double().flatten().sort().values)
    below, above = torch.arange(N) / N, torch.arange(1, N + 1) / N
    distance = torch.maximum((levels - below).abs(), (levels - above).abs()).max()
    assert distance <= math.sqrt(math.log(2 / 1e-6) / 2 / N)


@DISTRIBUTION
@STREAMS
def test_neighbours_are_independent(name):
    # Products of x and of x^2 - 1 with their neighbours, of variance 1 and 2^2; the elements half
    # a row apart come from the same 64 bits.
    x = stream_of(name).double()
    half = x.shape[1] // 2
    neighbours = {
        "in a row": (x[:, 1:], x[:, :-1]),
        "in a column": (x[1:], x[:-1]),
        "two apart": (x[:, 2:], x[:, :-2]),
        "half a row apart": (x[:, :half], x[:, half:]),
        "diagonal": (x[1:, 1:], x[:-1, :-1]),
    }
    for where, (a, b) in neighbours.items():
        assert abs((a * b).mean()) <= 5 / math.sqrt(a.numel()), where
        squares = ((a**2 - 1) * (b**2 - 1)).mean()
        assert abs(squares) <= 5 * 2 / math.sqrt(a.numel()), where


@DISTRIBUTION
def test_rows_do_not_repeat():
    keys, steps = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    noise = box_noise(keys.flatten(), steps.flatten(), 8)
    assert len({tuple(row) for row in noise.tolist()}) == 64 * 64


# Errors.

SAME = "choose the same examples everywhere"
ONES = torch.ones(2, 3)
VECTOR = torch.ones(2)
COUNTS = torch.arange(2)
GOOD = {"points": ONES, "gradients": ONES, "low": ONES, "high": ONES, "unit": ONES[0]}
GOOD |= {"sizes": VECTOR, "noise": ONES[0], "keys": COUNTS, "steps": COUNTS}


@pytest.mark.parametrize(
    ("error", "wrong", "message"),
    [
        (
            ValueError, {"points": torch.tensor(1.0)},
            "points must have shape (n, ...), got a 0-d tensor; pass points[None]",
        ),
        (
            TypeError, {"points": torch.ones(2, 3, dtype=torch.int64)},
            "points must be float16, bfloat16, float32 or float64, got torch.int64; "
            "pass points.float()",
        ),
        (
            ValueError, {"points": torch.ones(3, 2).t()},
            "points must be contiguous, got strides (1, 2); they are changed in place, so keep the "
            "result of points.contiguous() and pass that",
        ),
        (
            NotImplementedError, {"points": torch.ones(2, 3, requires_grad=True)},
            "box_step has no derivative, got points that are to be differentiated; "
            "pass points.detach(), which shares their memory",
        ),
        *(
            (
                ValueError, {name: torch.ones(3, 3)},
                f"{name} must have shape (2, 3), got (3, 3); {SAME}",
            )
            for name in ("gradients", "low", "high")
        ),
        *(
            (
                TypeError, {name: torch.ones(2, 3, dtype=torch.float64)},
                f"{name} must be torch.float32 on cpu, got torch.float64 on cpu; "
                f'pass {name}.to("cpu", torch.float32)',
            )
            for name in ("gradients", "low", "high")
        ),
        (
            TypeError, {"low": torch.ones(2, 3, device="meta")},
            "low must be torch.float32 on cpu, got torch.float32 on meta; "
            'pass low.to("cpu", torch.float32)',
        ),
        (
            ValueError, {"sizes": torch.ones(())},
            f"sizes must have shape (2,), got (); {SAME}",
        ),
        *(
            (
                TypeError, {name: x.long()},
                f"{name} must be torch.float32 on cpu, got torch.int64 on cpu; "
                f'pass {name}.to("cpu", torch.float32)',
            )
            for name, x in (("sizes", VECTOR), ("unit", ONES[0]), ("noise", ONES[0]))
        ),
        *(
            (
                ValueError, {name: torch.ones(shape)},
                f"{name} must broadcast to the shape of one example, (3,), got {shape}; "
                "a number per channel has shape (C, 1, 1)",
            )
            for name in ("unit", "noise")
            for shape in ((2,), (1, 3), (2, 3))
        ),
        *(
            (
                ValueError, {name: None},
                f"{name} must be given with noise, got None; see box_noise",
            )
            for name in ("keys", "steps")
        ),
        *(
            (
                ValueError, {name: torch.arange(3)},
                f"{name} must have shape (2,), got (3,); {SAME}",
            )
            for name in ("keys", "steps")
        ),
        *(
            (
                TypeError, {name: torch.ones(2)},
                f"{name} must be torch.int64 on cpu, got torch.float32 on cpu; "
                f'pass {name}.to("cpu", torch.int64)',
            )
            for name in ("keys", "steps")
        ),
    ],
)  # fmt: skip
def test_errors(error, wrong, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        box_step(**GOOD | wrong)
    assert (ONES == 1).all()


@pytest.mark.parametrize(
    ("error", "args", "message"),
    [
        (
            ValueError, (COUNTS, COUNTS, -1),
            "d must be a whole number from 0, got -1; it is the number of elements",
        ),
        (
            ValueError, (COUNTS[None], COUNTS, 3),
            f"keys must have shape (1,), got (1, 2); {SAME}",
        ),
        (
            ValueError, (COUNTS, COUNTS[:1], 3),
            f"steps must have shape (2,), got (1,); {SAME}",
        ),
        (
            TypeError, (COUNTS.int(), COUNTS, 3),
            "keys must be torch.int64 on cpu, got torch.int32 on cpu; "
            'pass keys.to("cpu", torch.int64)',
        ),
    ],
)  # fmt: skip
def test_errors_of_the_noise(error, args, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        box_noise(*args)


@pytest.fixture
def step_from():
    case = Case((3, 4))

    def step(points):
        moved = points * 1
        box_step(moved, *case.tensors[1:], **case.options)
        return moved

    return step


def test_no_derivative(step_from):
    x = torch.ones(3, 4)
    with pytest.raises(NotImplementedError, match="box_step has no derivative"):
        jvp(step_from, (x,), (x,))
    with pytest.raises(NotImplementedError, match="box_step has no derivative"):
        step_from(x.requires_grad_())
    with pytest.raises(NotImplementedError, match="box_step has no derivative"):
        grad(lambda x: step_from(x).sum())(x.detach())


def test_not_inside_vmap(step_from):
    with pytest.raises(RuntimeError, match="Batching rule not implemented for memtools::box_step"):
        vmap(step_from)(torch.ones(2, 3, 4))


def test_points_that_require_a_gradient_without_one_to_come():
    case = Case((3, 4))
    expected, error = case.expected()
    points = case.tensors[0].requires_grad_()
    with torch.no_grad():
        box_step(points, *case.tensors[1:], **case.options)
    assert ((points.detach() - expected).abs() <= error).all()
    box_step(points.detach(), *case.tensors[1:], **case.options)


def test_inference_mode():
    outside = Case((3, 4))
    with torch.inference_mode():
        Case((3, 4)).check()
        outside.check()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import box_step
        x = torch.zeros(1, 2)
        box_step(x, x + 1, x - 1, x + 1, unit=torch.ones(2), sizes=torch.full((1,), 0.5))
        print(x.tolist())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "[[0.5, 0.5]]\n"), run.stderr
