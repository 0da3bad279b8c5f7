import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Machinery, not tests.
collect_ignore = ["cases.py", "unrolled.py"]


def _load(name: str) -> ModuleType:
    # By path, since tests are no package and their folder is not on sys.path.
    full = f"memtools_tests_sensitivity_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def unrolled():
    """Module `unrolled.py` beside this file."""
    return _load("unrolled")


@pytest.fixture(scope="session")
def cases():
    """Module `cases.py` beside this file."""
    return _load("cases")


@pytest.fixture(params=list(_load("cases").MODELS))
def network_name(request):
    """Name of each model in turn."""
    return request.param


@pytest.fixture(params=list(_load("cases").OPTIMIZERS))
def optimizer_name(request):
    """Name of each optimiser in turn."""
    return request.param


@pytest.fixture(scope="session")
def unroll(unrolled):
    """A function that does a training over as one graph, up to an update if one is given."""

    def over(case, trained, *, upto=None, **options):
        batches = case.batches[case.warm_up :]
        return unrolled.Unrolled(
            trained.initial,
            case.x,
            case.y,
            batches if upto is None else batches[:upto],
            case.update or unrolled.UPDATES[trained.kind],
            trained.settings,
            trained.random_states,
            trained.modes,
            loss=case.loss_fn or unrolled.cross_entropy,
            reduction=case.reduction,
            state=trained.state,
            keep_gradients=case.keep_gradients,
            **options,
        )

    return over
