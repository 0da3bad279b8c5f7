"""The launches of every operator, compiled for real GPUs; the machine needs none."""

import math

import pytest
import torch
from memtools_kernels.box_step import _box_step_triton
from memtools_kernels.row_norms import _row_norms_triton

from bench.launches import huge_launches, launches

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def compiled(aot, target, launch, *args):
    with aot.compile_only(aot.TARGETS[target]) as kernels:
        launch(*args)
    return [aot.resources(kernel) for kernel in kernels]


LAUNCHES = list(launches())
HUGE = list(huge_launches())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: f"{launch.operator}: {launch.case}")
def test_launches(aot, target, launch):
    # Their tensors have no memory: a wrapper that asked the GPU for a number would fail here.
    kernels = compiled(aot, target, launch.call)
    assert kernels
    assert not any(kernel.spill_bytes or kernel.atomics for kernel in kernels)
    if launch.is_wide and target.startswith("sm"):
        assert any(kernel.wide_loads for kernel in kernels)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("launch", HUGE, ids=lambda launch: launch.operator)
def test_launches_beyond_32_bits(aot, target, launch):
    kernels = compiled(aot, target, launch.call)
    assert kernels
    assert not any(kernel.spill_bytes or kernel.atomics for kernel in kernels)


def test_every_operator_is_compiled():
    names = torch._C._dispatch_get_all_op_names()  # type: ignore[attr-defined]
    operators = {name.split("::")[1] for name in names if name.startswith("memtools::")}
    assert {launch.operator for launch in LAUNCHES} == operators
    assert {launch.operator for launch in HUGE} == operators


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_norms_of_a_matrix(aot, target, p, dtype):
    (kernel,) = compiled(
        aot, target, _row_norms_triton, [torch.empty(64, 4096, dtype=dtype)], p, False
    )
    assert kernel.spill_bytes == 0
    assert not kernel.atomics
    assert kernel.wide_loads
    assert kernel.registers <= 128


# One launch per stage, the first of which reads the input.
MATRICES = {
    "rows of one element": (torch.empty(1024), 1, True),
    "short rows": (torch.empty(1000, 16), 1, True),
    "odd rows, not aligned": (torch.empty(7, 1023), 1, False),
    "columns contiguous": (torch.empty(4096, 64).t(), 2, True),
    "channels last": (torch.empty(8, 16, 8, 8).to(memory_format=torch.channels_last), 1, True),
    "few long rows": (torch.empty(4, 1 << 20), 2, True),
    "one row, cut into parts twice": (torch.empty(1, 1 << 29, dtype=torch.float16), 3, True),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MATRICES)
def test_row_norms_of_other_shapes(aot, target, name):
    x, stages, wide_loads = MATRICES[name]
    kernels = compiled(aot, target, _row_norms_triton, [x], 2.0, False)
    assert len(kernels) == stages
    assert not any(kernel.spill_bytes or kernel.atomics for kernel in kernels)
    assert kernels[0].wide_loads == wide_loads


def step_arguments(shape, dtype=torch.float32, *, noisy=True):
    # A pointer counts as aligned at the address 0 of the meta device, which has room for any shape.
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [torch.empty(shape, dtype=dtype, device="meta") for _ in range(4)]
    unit, sizes = (torch.empty(n, dtype=accumulator, device="meta") for n in (shape[1], shape[0]))
    counts = torch.empty(shape[0], dtype=torch.int64, device="meta")
    return *tensors, unit, sizes, *((unit, counts, counts) if noisy else (None, None, None))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("noisy", [False, True], ids=["no noise", "noise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_box_step(aot, target, noisy, dtype):
    args = step_arguments((1000, 784), dtype, noisy=noisy)
    (kernel,) = compiled(aot, target, _box_step_triton, *args)
    assert kernel.spill_bytes == 0
    assert not kernel.atomics
    assert kernel.registers <= 96


# One element, a column, short rows, odd rows, beyond 32 bits.
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1024, 1), (1000, 2), (7, 1023), (1 << 31, 3)],
)
def test_box_step_of_other_shapes(aot, target, shape):
    for dtype in (torch.float32, torch.float64):
        (kernel,) = compiled(aot, target, _box_step_triton, *step_arguments(shape, dtype))
        assert kernel.spill_bytes == 0
        assert not kernel.atomics
        assert kernel.registers <= 96


@pytest.mark.parametrize("target", TARGETS)
def test_the_report_sees_spills_and_atomics(aot, target):
    block = 512 * aot.TARGETS[target].warp_size  # no GPU has 512 free registers a thread
    with aot.compile_only(aot.TARGETS[target]) as kernels:
        aot.bad_example[(1,)](torch.empty(block), BLOCK=block, num_warps=1)
    report = aot.resources(kernels[0])
    assert report.spill_bytes > 0
    assert report.atomics
