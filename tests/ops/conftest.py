import os

import pytest
from memtools_kernels.backend import INTERPRET


@pytest.fixture(scope="session")
def aot(tmp_path_factory):
    """Module `bench/aot.py`, which needs Triton, with Triton's cache in a temporary folder."""
    pytest.importorskip("triton", reason="there is nothing to compile without Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels cannot be compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        import bench.aot

        yield bench.aot


@pytest.fixture
def traffic(monkeypatch):
    """Addresses that interpreted kernels read and those that they write, in order."""
    if not INTERPRET:
        pytest.skip("only the interpreter knows the addresses")
    from triton.runtime.interpreter import InterpreterBuilder

    reads, writes = [], []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def watched_load(self, ptrs, mask, *rest):
        reads.extend(ptrs.data[mask.data].tolist())
        return load(self, ptrs, mask, *rest)

    def watched_store(self, ptrs, value, mask, *rest):
        writes.extend(ptrs.data[mask.data].tolist())
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
    return reads, writes
