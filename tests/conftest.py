import pytest
import torch
from hypothesis import Phase, settings
from torch import distributed

# `tests` is no package; pytest makes modules below its root directory importable by their place.
import tests.gradient_zoo
import tests.oracles
import tests.zoo

# Small matrices gain nothing from threads, and wait for them on a busy machine.
torch.set_num_threads(1)

# The same examples each time, however slow the machine.
settings.register_profile("memtools", deadline=None, derandomize=True, database=None)
settings.load_profile("memtools")
# Any failure will do for `python -m bench.mutants`; to find the smallest takes minutes.
settings.register_profile(
    "any-failure", settings.get_profile("memtools"), phases=[Phase.explicit, Phase.generate]
)

# Machinery, not tests.
collect_ignore = ["gradient_zoo.py", "oracles.py", "zoo.py"]


@pytest.fixture(scope="session")
def oracles():
    """Module `oracles.py` beside this file."""
    return tests.oracles


@pytest.fixture(scope="session")
def zoo():
    """Module `zoo.py` beside this file."""
    return tests.zoo


@pytest.fixture(scope="session")
def gradient_zoo():
    """Module `gradient_zoo.py` beside this file."""
    return tests.gradient_zoo


@pytest.fixture(params=list(tests.gradient_zoo.MODELS))
def gradient_case(request, gradient_zoo):
    """A function that builds a model of the gradient zoo for a dtype, and a batch of n; each."""
    return lambda dtype, n=gradient_zoo.N: gradient_zoo.build(request.param, dtype, n)


@pytest.fixture(params=list(tests.zoo.MODELS))
def model_name(request):
    """Name of each model of the zoo in turn."""
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def case(request, zoo, model_name):
    """Each model of the zoo with a batch for it, in each dtype."""
    return zoo.build(model_name, request.param)


@pytest.fixture
def tolerance(case, oracles):
    """Relative tolerance for the results of a case against those in float64."""
    if case.inputs.dtype == torch.float64:
        return oracles.FLOAT64
    return oracles.float32_tolerance(case.model)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A process group of this process alone, for DistributedDataParallel."""
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(
    params=[
        "plain",
        "no_grad",
        "inference_mode",
        "inference tensors",
        "compiled",
        "compiled in place",
        "compiled inside",
        "distributed",
    ]
)
def called(request, zoo):
    """A function that calls a metric of the MLP in each of the surroundings in turn."""
    model, inputs, targets = zoo.build("mlp", torch.float64)

    def call(metric, **options):
        return metric(model, inputs, targets, **options)

    match request.param:
        case "no_grad":
            return torch.no_grad()(call)
        case "inference_mode":
            return torch.inference_mode()(call)
        case "inference tensors":
            with torch.inference_mode():
                inputs, targets = inputs.clone(), targets.clone()
        case "compiled":
            model = torch.compile(model, backend="aot_eager")
        case "compiled in place":
            model.compile(backend="aot_eager")
        case "compiled inside":
            model[0] = torch.compile(model[0], backend="aot_eager")
        case "distributed":
            request.getfixturevalue("process_group")
            model = torch.nn.parallel.DistributedDataParallel(model)
    return call
