"""The matrix as benchmarks: a group for each operation, a case for each implementation.

Each case is compared with the float64 oracle first; where memtools is wrong, it fails. What is kept
beside the times is in ``extra_info``. For ratios take ``python -m bench.matrix``: it times in turn.
"""

import functools
import warnings
from typing import Any

import pytest
import torch

from bench.cases.operation import checked, versions
from bench.cases.table import OPERATIONS, OURS
from bench.kept import circumstances
from bench.matrix import COMPILED
from bench.memory import peak_of_fork

CASES = [(name, way) for name, operation in OPERATIONS.items() for way in operation.ways]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)  # the cases of an operation follow each other
def problem_of(name: str, size: int) -> tuple[Any, torch.Tensor]:
    problem = OPERATIONS[name].build(size)
    return problem, OPERATIONS[name].oracle(problem)


@functools.cache
def surroundings() -> dict[str, Any]:
    found = circumstances()
    return {key: found[key] for key in ("torch", "threads", "processor", "commit")} | {
        "device": "cpu",
        "versions": versions(),
    }


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # by what refuses
@pytest.mark.parametrize(("name", "impl"), CASES, ids=[f"{n}-{way}" for n, way in CASES])
def test_matrix(name, impl, benchmark):
    operation = OPERATIONS[name]
    if benchmark.disabled and impl == COMPILED:
        pytest.skip("compiling takes long; it is checked where it is timed")
    benchmark.group = f"{name}: {operation.what}"
    size = operation.sizes.small if benchmark.disabled else operation.sizes.full
    problem, expected = problem_of(name, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other tools' use of deprecated functions
        outcome = checked(operation, problem, expected, impl)
        benchmark.extra_info |= surroundings() | {
            "impl": impl,
            "status": outcome.status,
            "relative_error": outcome.error,
            "message": outcome.message,
        }
        if impl == OURS:
            assert outcome.status == "ok", (outcome.message, outcome.error)
        if outcome.run is None:
            pytest.skip(f"{impl} {outcome.status}: {outcome.message}")
        if not benchmark.disabled:
            benchmark.extra_info["memory_mib"] = peak_of_fork(outcome.run)
        benchmark(outcome.run)
