import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

OPS = Path(__file__).parent


AT_LEAST = {
    "test_patch_norms.py": 250,  # those that take longest come first
    "test_outer_norms.py": 250,
    "test_row_norms.py": 600,
    "test_gini.py": 300,
    "test_lookup_norms.py": 250,
    "test_logit_scores.py": 300,
    "test_lookup_dots.py": 290,
    "test_box_step.py": 250,
}
"""How many tests of a file the interpreter passes, or more."""


@pytest.fixture(scope="module")
def runs():
    """What became of each file, to be waited for; two at a time, as they keep a core each busy."""
    # A process of its own: Triton decides at import whether to interpret or to compile.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}

    def run(file):
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", OPS / file],
            env=environment | {"TRITON_INTERPRET": "1"},
            cwd=OPS.parents[1],
            capture_output=True,
            text=True,
            check=False,
        )

    with ThreadPoolExecutor(2) as pool:
        yield {file: pool.submit(run, file) for file in AT_LEAST}


@pytest.mark.skipif(find_spec("triton") is None, reason="the interpreter is a part of Triton")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
@pytest.mark.parametrize("file", AT_LEAST)
def test_operators_pass_in_the_interpreter(file, runs):
    run = runs[file].result()
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout
    assert int(passed[1]) > AT_LEAST[file], run.stdout
