"""Versions, devices, extras, and how the operators run."""

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import memtools_kernels
import torch
from memtools_kernels.backend import HAS_TRITON, INTERPRET

from memtools.doctor.finding import Finding

__all__ = ["devices", "extras", "operators", "versions"]

PACKAGES = ("memtools", "torch", "torchvision", "triton", "numpy")

EXTRAS = {
    "study": "memtools study, report and score",
    "metrics": "memtools.metrics in torchmetrics",
    "lightning": "memtools.integrations.lightning",
    "transformers": "memtools.integrations.transformers",
}


def versions() -> Iterator[Finding]:
    """Of Python, the system, and what memtools stands on."""
    yield Finding("versions", "python", f"{platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        found = torch.__version__ if package == "torch" else _version(package)
        if found:
            yield Finding("versions", package, found)
        else:
            yield Finding("versions", package, "not installed", "missing")


def devices() -> Iterator[Finding]:
    """The CPU and every accelerator, or why there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    yield Finding("devices", "cpu", f"{name}, {cores} cores, {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        memory = f"{about.total_memory / 2**30:.1f} GiB"
        words = f"{about.name}, {memory}, compute capability {about.major}.{about.minor}"
        yield Finding("devices", f"cuda:{i}", words)
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "Metal")
    if not torch.accelerator.is_available():
        kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
        built = [f"{kind} {found}" for kind, found in kinds.items() if found]
        why = f"this torch is built for {built[0]}, but finds none" if built else "none"
        yield Finding("devices", "accelerator", why, "missing")


def extras() -> Iterator[Finding]:
    """What is installed of each extra."""
    needed = requires("memtools") or []
    for extra, use in EXTRAS.items():
        mine = [line for line in needed if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", line)]
        names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in mine]
        found = {name: _version(name) for name in names}
        if missing := [name for name in names if found[name] is None]:
            words = f'no {", ".join(missing)}; for {use}: pip install "memtools[{extra}]"'
            yield Finding("extras", extra, words, "missing")
        else:
            yield Finding("extras", extra, ", ".join(f"{k} {v}" for k, v in found.items()))


def operators(device: torch.device) -> Iterator[Finding]:
    """How each operator runs on a device."""
    how = "plain PyTorch"
    if INTERPRET:
        how = "Triton's interpreter, which is slow: TRITON_INTERPRET is set"
    elif HAS_TRITON and device.type == "cuda":
        how = "Triton kernel"
    names = [name for name in memtools_kernels.__all__ if name[0].islower()]
    yield Finding("operators", f"on {device}", f"{how}: {', '.join(names)}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
