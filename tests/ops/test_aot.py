"""The launches of every operator, compiled for real GPUs; the machine needs none."""

import math

import pytest
import torch
from memtools_kernels.row_norms import _row_norms_triton

TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def compiled(aot, target, x, p):
    with aot.compile_only(aot.TARGETS[target]) as kernels:
        _row_norms_triton(x, p)
    return [aot.resources(kernel) for kernel in kernels]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_norms_of_a_matrix(aot, target, p, dtype):
    (kernel,) = compiled(aot, target, torch.empty(64, 4096, dtype=dtype), p)
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
    kernels = compiled(aot, target, x, 2.0)
    assert len(kernels) == stages
    assert not any(kernel.spill_bytes or kernel.atomics for kernel in kernels)
    assert kernels[0].wide_loads == wide_loads


@pytest.mark.parametrize("target", TARGETS)
def test_the_report_sees_spills_and_atomics(aot, target):
    block = 512 * aot.TARGETS[target].warp_size  # no GPU has 512 free registers a thread
    with aot.compile_only(aot.TARGETS[target]) as kernels:
        aot.bad_example[(1,)](torch.empty(block), BLOCK=block, num_warps=1)
    report = aot.resources(kernels[0])
    assert report.spill_bytes > 0
    assert report.atomics
