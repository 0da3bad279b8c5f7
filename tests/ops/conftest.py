import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Machinery, not tests; it cannot be imported without Triton.
collect_ignore = ["aot.py"]


@pytest.fixture(scope="session")
def aot(tmp_path_factory):
    """Module `aot.py` beside this file, with Triton's cache in a temporary folder."""
    pytest.importorskip("triton", reason="there is nothing to compile without Triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels cannot be compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield _load(Path(__file__).with_name("aot.py"))


def _load(path: Path) -> ModuleType:
    # By path, since tests are no package and their folder is not on sys.path.
    spec = importlib.util.spec_from_file_location(f"memtools_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
