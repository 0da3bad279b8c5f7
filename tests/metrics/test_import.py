import subprocess
import sys

import pytest


def printed(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_memtools_alone_does_not_import_torchmetrics():
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    program = (
        "import sys, memtools; print('torchmetrics' in sys.modules)\n"
        "import memtools.metrics; print('torchmetrics' in sys.modules)"
    )
    assert printed(program).split() == ["False", "True"]


def test_without_torchmetrics_the_command_is_told():
    program = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "try:\n"
        "    import memtools.metrics\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name, '|', error)"
    )
    expected = 'torchmetrics | torchmetrics is not installed; run: pip install "memtools[metrics]"'
    assert printed(program) == expected
