"""Everything on the GPU that there is: is it right, how fast is it, beside what.

``python -m bench.gpu [--quick] [--device cuda] [--results FOLDER]``: check every operator against
float64; time it beside eager code and ``torch.compile`` of that, with the bandwidth of a copy and
the rate of a matrix product measured in the same run; then whole models. The results go into one
file per device under ``bench/results``; with ``--quick`` or on a CPU only into a folder that is
named. Takes less than 8 minutes.
"""

import argparse
import gc
import json
import re
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from bench.device_timing import Call, Times, in_turn
from bench.gpu_models import calls, searches, trainings
from bench.gradient_norms import peers
from bench.kept import RESULTS, circumstances, first_words, keep, show
from bench.operator_problems import Problem, off_by, on_gpu, small, widened

SECONDS = 2.0
"""For a comparison."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float64: 1e-12}
"""Inputs are rounded before the exact result is computed: what is left is the sums, in float32."""
LARGEST_CHECKED = 2**28
"""Bytes of inputs for which there is room for float64 beside them."""


class Row(NamedTuple):
    """A method on a case; the fields are the columns."""

    part: str
    """``yardstick``, ``operator``, ``norms`` or ``search``."""
    case: str
    method: str
    status: str = "ok"
    """``ok``, ``wrong``, ``refuses`` or ``absent``."""
    error: float | None = None
    milliseconds: float | None = None
    p20: float | None = None
    p80: float | None = None
    rounds: int | None = None
    gigabytes_per_second: float | None = None
    teraflops: float | None = None
    peak_mib: float | None = None
    message: str = ""

    def timed(self, times: Times, moved: int = 0, multiplied: int = 0) -> "Row":
        return self._replace(
            milliseconds=times.median,
            p20=times.p20,
            p80=times.p80,
            rounds=times.rounds,
            peak_mib=times.peak_mib,
            gigabytes_per_second=moved / times.median / 1e6 if moved else None,
            teraflops=2 * multiplied / times.median / 1e9 if multiplied else None,
        )


def tried(part: str, case: str, methods: Mapping[str, Call], seconds: float, device: torch.device,
          moved: int = 0, multiplied: int = 0) -> Iterator[Row]:  # fmt: skip
    """Rows of all methods; what cannot be done at all is left out of the timing."""
    rows, possible = [], dict(methods)
    for name, call in methods.items():
        row = Row(part, case, name)
        try:
            call()
        except ImportError as error:
            row = row._replace(status="absent", message=str(error))
        except Exception as error:
            row = row._replace(status="refuses", message=first_words(error))
        if row.status != "ok":
            del possible[name]
        rows.append(row)
    times = in_turn(possible, device, seconds)
    for row in rows:
        found = times.get(row.method)
        yield row.timed(found, moved, multiplied) if found else row


def yardsticks(device: torch.device, seconds: float, *, small: bool) -> Iterator[Row]:
    """What a copy and a matrix product reach."""
    n = 2**10 if small else 2**28
    x, y = (torch.empty(n, device=device) for _ in range(2))
    yield from tried(
        "yardstick", f"copy of {4 * n / 2**20:g} MiB", {"copy": partial(y.copy_, x)}, seconds,
        device, moved=8 * n,
    )  # fmt: skip
    for dtype in (torch.bfloat16, torch.float32):
        n = 64 if small else 8192
        a = torch.randn(n, n, device=device).to(dtype)
        case = f"matrix product of {n}, {str(dtype).removeprefix('torch.')}"
        product = {"matrix product": partial(torch.mm, a, a)}
        yield from tried("yardstick", case, product, seconds, device, multiplied=n**3)


def operator(problem: Problem, device: torch.device, seconds: float) -> Iterator[Row]:
    inputs = problem.make(device)
    methods: dict[str, Call] = {
        "memtools": partial(problem.ours, *inputs),
        "eager": partial(problem.naive, *inputs),
    }
    if device.type == "cuda":
        methods["torch.compile"] = partial(torch.compile(problem.naive), *inputs)
    case = f"{problem.operator}: {problem.name}"
    for row in tried("operator", case, methods, seconds, device, problem.moved,
                     problem.multiplied):  # fmt: skip
        yield _checked(row, problem, inputs) if row.method == "memtools" else row


def _checked(row: Row, problem: Problem, inputs: tuple[Any, ...]) -> Row:
    parts = (part for x in inputs for part in (x if isinstance(x, list) else [x]))
    tensors = [x for x in parts if isinstance(x, torch.Tensor)]
    if not problem.gives_same:
        return row._replace(message="other noise than that of eager code")
    if sum(x.nbytes for x in tensors) > LARGEST_CHECKED:
        return row._replace(message="too large to be checked here; a smaller one is")
    exact = problem.naive(*widened(inputs))
    error = off_by(problem.ours(*inputs), exact)
    # TF32 and half precision round the factors of a matrix product, no sum.
    status = "ok" if error <= max(TOLERANCE[x.dtype] for x in tensors if x.dtype in TOLERANCE) \
        else "wrong"  # fmt: skip
    return row._replace(status=status, error=error)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--device", type=torch.device, default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --quick --device cpu shows that the program runs")
    on_gpu_fully = device.type == "cuda" and not arguments.quick
    folder = arguments.results or (RESULTS if on_gpu_fully else None)
    seconds = 0.01 if arguments.quick else SECONDS

    start = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = circumstances() | {
        "device": name,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "peers": peers(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "quick": arguments.quick,
    }
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    show(Row._fields)
    rows: list[Row] = []

    def note(found: Iterator[Row]) -> None:
        for row in found:
            show(row)
            rows.append(row)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    note(yardsticks(device, seconds, small=arguments.quick))
    for problem in [*small(), *(() if arguments.quick else on_gpu())]:
        note(operator(problem, device, seconds))
    for training in trainings(device, small=arguments.quick):
        note(tried("norms", training.name, calls(training), seconds, device))
    found = searches(device, small=arguments.quick)
    note(tried("search", "CSR with SmallAlexNet", found, seconds, device))

    about["seconds"] = round(time.perf_counter() - start)
    print(f"{about['seconds']} s")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = "gpu_" + re.sub(r"\W+", "_", name).lower()
        keep(folder / f"{stem}.csv", Row, rows)
        (folder / f"{stem}.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder)


if __name__ == "__main__":
    main()
