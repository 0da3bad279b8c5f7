import importlib.util
import sys
from pathlib import Path

import pytest

# Machinery, not tests.
collect_ignore = ["networks.py", "ranks.py"]


@pytest.fixture(scope="session")
def networks():
    """Module `networks.py` beside this file."""
    # By path, since tests are no package and their folder is not on sys.path.
    full = "memtools_tests_critical_networks"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name("networks.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(params=["lass", "auto"])
def method(request):
    """Each method of find_critical in turn."""
    return request.param


@pytest.fixture(params=["MLP", "memorised", "CNN", "residual"])
def trained(request, networks):
    """A trained network in float32 and eval mode, a few images, and a radius that splits them."""
    return networks.trained(request.param)
