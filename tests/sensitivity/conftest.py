import pytest

import tests.sensitivity.cases
import tests.sensitivity.unrolled

# Machinery, not tests.
collect_ignore = ["cases.py", "unrolled.py"]


@pytest.fixture(scope="session")
def unrolled():
    """Module `unrolled.py` beside this file."""
    return tests.sensitivity.unrolled


@pytest.fixture(scope="session")
def cases():
    """Module `cases.py` beside this file."""
    return tests.sensitivity.cases


@pytest.fixture(params=list(tests.sensitivity.cases.MODELS))
def network_name(request):
    """Name of each model in turn."""
    return request.param


@pytest.fixture(params=list(tests.sensitivity.cases.OPTIMIZERS))
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
