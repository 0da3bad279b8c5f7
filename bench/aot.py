"""Compile what a launch wrapper launches for real GPUs, on a machine without one.

Inside `compile_only(target)` a launch on CPU tensors compiles its kernel and runs nothing. Types,
alignment and constants are specialised by Triton itself, as they would be for the same launch on a
GPU, so there is no table of signatures to keep in step with a kernel.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class Resources(NamedTuple):
    """What a compiled kernel needs and which kinds of instructions it has."""

    registers: int  # per thread
    shared_bytes: int  # per program
    spill_bytes: int
    atomics: bool
    wide_loads: bool  # some load from global memory moves 16 bytes per thread


@contextmanager
def compile_only(target: GPUTarget) -> Iterator[list[Any]]:
    """Compile every kernel launched in the block for ``target`` instead; yield the kernels."""
    compiled: list[Any] = []
    launch = JITFunction.run

    def compile_instead(self: Any, *args: Any, warmup: bool = False, **kwargs: Any) -> Any:
        compiled.append(launch(self, *args, warmup=True, **kwargs))
        return compiled[-1]

    # All that a compilation asks of a driver. The device is only a key of Triton's kernel cache.
    fake_driver = SimpleNamespace(
        get_current_device=lambda: f"{target.backend}:{target.arch}",
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    with (
        patch.object(JITFunction, "run", compile_instead),
        patch.object(driver, "_active", fake_driver),
    ):
        yield compiled


def resources(kernel: Any) -> Resources:
    """Read the assembly of one kernel that `compile_only` yielded."""
    if "ptx" in kernel.asm:
        return _nvidia_resources(kernel)
    return _amd_resources(kernel)


def _nvidia_resources(kernel: Any) -> Resources:
    ptx, arch = kernel.asm["ptx"], kernel.metadata.target.arch
    (sm,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm}", file.name, "-o", os.devnull]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Resources(
        registers=int(*re.findall(r"Used (\d+) registers", log)),
        shared_bytes=kernel.metadata.shared,
        spill_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        atomics=bool(re.search(r"\b(atom|red)\.", ptx)),
        wide_loads=bool(re.search(_WIDE, ptx)),
    )


# Loads into registers, and copies into shared memory.
_WIDE = r"\bld\.global\S*\.(v4\.b32|v2\.b64|b128)|cp\.async\.c[ag]\.shared\.global[^;]*, 0x10,"


def _amd_resources(kernel: Any) -> Resources:
    amdgcn = kernel.asm["amdgcn"]

    def note(name: str) -> int:
        return int(*re.findall(rf"\.{name}: +(\d+)", amdgcn))

    return Resources(
        registers=note("vgpr_count"),
        shared_bytes=kernel.metadata.shared,
        spill_bytes=4 * (note("vgpr_spill_count") + note("sgpr_spill_count")),
        atomics="_atomic_" in amdgcn,
        wide_loads=bool(re.search(r"(global|buffer)_load_dwordx4", amdgcn)),
    )


@triton.jit
def bad_example(x_ptr, BLOCK: tl.constexpr):
    """Spill registers and add atomically, for the test that `resources` sees both."""
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.debug_barrier()
    tl.atomic_add(x_ptr + BLOCK - 1 - offsets, x)
