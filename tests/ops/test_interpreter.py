import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

OPS = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="the interpreter is a part of Triton")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
def test_operators_pass_in_the_interpreter():
    # A process of its own: Triton decides at import whether to interpret or to compile.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", OPS / "test_row_norms.py"],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=OPS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout
    assert int(passed[1]) > 300, run.stdout
