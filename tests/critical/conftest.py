import pytest

import tests.critical.intervals_zoo
import tests.critical.networks

# Machinery, not tests.
collect_ignore = ["intervals_zoo.py", "networks.py", "ranks.py"]


@pytest.fixture(scope="session")
def networks():
    """Module `networks.py` beside this file."""
    return tests.critical.networks


@pytest.fixture(scope="session")
def intervals():
    """Module `intervals_zoo.py` beside this file."""
    return tests.critical.intervals_zoo


@pytest.fixture(params=list(tests.critical.intervals_zoo.MODELS))
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
