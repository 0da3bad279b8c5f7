import pytest

# Machinery, not tests.
collect_ignore = ["cases.py", "ranks.py"]

NAMES = [
    "ClassSensitivity",
    "CriticalSampleRatio",
    "CriticalSampleRatio by index",
    "InputGradientGini",
    "MisclassificationRate",
    "ParameterGradientGini",
    "ScoreGini",
    "TimeToConvergence",
]


@pytest.fixture(scope="session")
def cases():
    """Module `cases.py` beside this file."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    import tests.metrics.cases

    return tests.metrics.cases


@pytest.fixture(params=NAMES)
def measure(request, cases):
    """Every metric in turn: how it is built, and what it is updated with for some examples."""
    return cases.MEASURES[request.param]


@pytest.fixture(params=[name for name in NAMES if name != "TimeToConvergence"])
def additive(request, cases):
    """Every metric in turn whose batches may come in any order and from any process."""
    return cases.MEASURES[request.param]
