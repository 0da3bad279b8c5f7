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
@pytest.mark.parametrize(
    ("file", "at_least"),
    [
        ("test_box_step.py", 250),
        ("test_gini.py", 60),
        ("test_logit_scores.py", 300),
        ("test_lookup_dots.py", 290),
        ("test_lookup_norms.py", 250),
        ("test_outer_norms.py", 250),
        ("test_patch_norms.py", 250),
        ("test_row_norms.py", 600),
    ],
)
def test_operators_pass_in_the_interpreter(file, at_least):
    # A process of its own: Triton decides at import whether to interpret or to compile.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", OPS / file],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=OPS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout
    assert int(passed[1]) > at_least, run.stdout
