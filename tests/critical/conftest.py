import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Machinery, not tests.
collect_ignore = ["intervals_zoo.py", "networks.py", "ranks.py"]


def _load(name: str) -> ModuleType:
    # By path, since tests are no package and their folder is not on sys.path.
    full = f"memtools_tests_critical_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def networks():
    """Module `networks.py` beside this file."""
    return _load("networks")


@pytest.fixture(scope="session")
def intervals():
    """Module `intervals_zoo.py` beside this file."""
    return _load("intervals_zoo")


@pytest.fixture(params=list(_load("intervals_zoo").MODELS))
def interval_model(request):
    """Name of each model of the intervals' zoo in turn."""
    return request.param


@pytest.fixture(params=["lass", "auto"])
def method(request):
    """Each method of find_critical in turn."""
    return request.param


@pytest.fixture(params=["MLP", "memorised", "CNN", "residual"])
def trained(request, networks):
    """A trained network in float32 and eval mode, a few images, and a radius that splits them."""
    return networks.trained(request.param)
