"""Training with any metric, in any surroundings, ends in the weights that it ends in without."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memtools
from memtools.guard import is_measuring

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

STEPS = 20


class Recording(nn.Module):
    """Its BatchNorm is in eval mode while it trains; it keeps what it saw last, and counts."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0
        self.last = None

    def train(self, mode=True):
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        self.last = self.body(x)
        self.late = x.shape
        if self.fails and is_measuring():
            torch.rand(1)
            self.train(not self.training)
            raise ZeroDivisionError
        return self.head(self.last)


def build() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Recording().train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 2, 1, 0])


def hooked(model):
    """Every kind of hook; those on weights and on their gradients must not see a metric call."""
    fired = []
    model.head.register_forward_pre_hook(lambda module, args: None)
    model.head.register_forward_hook(lambda module, args, output: output + 0.1)
    model.head.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    for parameter in model.parameters():
        parameter.register_hook(lambda grad: fired.append("gradient"))
        parameter.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    model.fired = fired
    return model


def frozen(model):
    model.body[0].requires_grad_(False)
    return model


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def failing(model):
    model.fails = True
    return model


PREPARE: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "hooked": hooked,
    "frozen": frozen,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "distributed": distributed,
}

SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}

METRICS: dict[str, Callable[..., Any]] = {
    "input_gradient_norms": memtools.input_gradient_norms,
    "parameter_gradient_norms": memtools.parameter_gradient_norms,
    "gradient_norms": memtools.gradient_norms,
    "class_sensitivity": memtools.class_sensitivity,
    "find_critical": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.5, max_steps=3
    ),
    "find_critical, auto": lambda model, inputs, targets: memtools.find_critical(
        model, inputs, radius=0.5, method="auto", certify=True
    ),
    "critical_sample_ratio": lambda model, inputs, targets: memtools.critical_sample_ratio(
        model, inputs, radius=0.5, max_steps=3
    ),
    "linear_reach": lambda model, inputs, targets: memtools.linear_reach(model, inputs, radius=0.5),
}
"""``metric(model, inputs, targets)``: what may be called at any moment of a training."""


@dataclass
class Step:
    """A moment of a training step: before the forward pass, inside the step, after backward."""

    moment: str
    number: int
    model: nn.Module
    logits: Tensor | None
    fails: bool

    @property
    def indices(self) -> Tensor:
        return torch.arange(6) + 10 * self.fails

    def is_the_turn_of(self, moment: str) -> bool:
        """Whether it is, if each step takes another moment."""
        return self.moment == moment == ("before", "inside", "after")[self.number % 3]


Measure = Callable[[Step], None]
Measuring = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Measure]]


def function(metric) -> Measuring:
    """A function, called once a step, each time at another moment."""

    @contextmanager
    def measuring(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Measure]:
        def measure(step: Step) -> None:
            if step.is_the_turn_of(step.moment):
                metric(step.model, *batch())

        yield measure

    return measuring


def class_of_metrics(name: str, *args: Any, **options: Any) -> Measuring:
    """A class of ``memtools.metrics``, updated with what it takes and computed each time."""

    @contextmanager
    def measuring(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Measure]:
        metric = getattr(pytest.importorskip("memtools.metrics"), name)(*args, **options)
        examples = dict(zip(("inputs", "targets"), batch(), strict=True))

        def measure(step: Step) -> None:
            wanted = inspect.signature(type(metric).update).parameters
            needs_model = "model" in wanted
            if step.is_the_turn_of(step.moment if needs_model else "inside"):
                given = {**vars(step), "indices": step.indices, **examples}
                if "values" in wanted:
                    given["values"] = F.cross_entropy(
                        given["logits"], given["targets"], reduction="none"
                    )
                metric.update(**{key: given[key] for key in given if key in wanted})
                metric.compute()

        yield measure

    return measuring


@contextmanager
def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Measure]:
    with memtools.watch(model) as watched:

        def measure(step: Step) -> None:
            if step.moment == "after" or step.fails:  # nothing is there to be read before
                assert len(watched.parameter_gradient_norms()) == 6
                assert len(watched.input_gradient_norms()) == 6

        yield measure


@contextmanager
def ledger(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Measure]:
    kept = memtools.Ledger(6)

    def measure(step: Step) -> None:
        if step.moment == "inside":
            kept.update(step.indices, logits=step.logits, targets=batch()[1])

    yield measure


@contextmanager
def tape(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Measure]:
    recorded = memtools.TrainingTape(model, optimizer)

    def measure(step: Step) -> None:
        if step.moment == "after":
            recorded.record(step.indices.float() if step.fails else step.indices)

    yield measure
    recorded.close()


ALL: dict[str, Measuring] = {
    **{name: function(metric) for name, metric in METRICS.items()},
    "watch": watch,
    "Ledger.update": ledger,
    "TrainingTape.record": tape,
    "ClassSensitivity": class_of_metrics("ClassSensitivity", 3),
    "CriticalSampleRatio": class_of_metrics("CriticalSampleRatio", 0.5, max_steps=3),
    "InputGradientGini": class_of_metrics("InputGradientGini", 6),
    "MisclassificationRate": class_of_metrics("MisclassificationRate", 6),
    "ParameterGradientGini": class_of_metrics("ParameterGradientGini", 6),
    "ScoreGini": class_of_metrics("ScoreGini", 6),
}
"""All that may be done in a training. A class of ``memtools.metrics`` takes one line here."""

KINDS = [*PREPARE, "autocast", "no_grad", "inference_mode", "failing"]

WATCHED = "model is compiled, and its operators cannot be seen"
TAPED = "under autocast, whose roundings a replay does not repeat"
REFUSED = {
    ("watch", "compiled"): WATCHED,
    ("watch", "compiled in place"): WATCHED,
    ("TrainingTape.record", "autocast"): TAPED,
}
"""What cannot be done, and what is said about it; the training goes on as it would without."""


def train(kind: str, measuring: Measuring | None) -> tuple[Any, list[Tensor], list[Exception]]:
    """The model after a training, copies of all its tensors, and what metric calls have raised."""
    model = (failing if kind == "failing" else PREPARE.get(kind, PREPARE["plain"]))(build())
    surroundings = SURROUNDINGS.get(kind, contextlib.nullcontext)
    inputs, targets = batch()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    torch.manual_seed(7)
    measure: Measure = lambda step: None  # noqa: E731
    errors: list[Exception] = []
    with contextlib.ExitStack() as stack:
        try:
            if measuring is not None:
                measure = stack.enter_context(measuring(model, optimizer))
        except Exception as error:
            errors.append(error)

        def call(moment: str, number: int, logits: Tensor | None = None) -> None:
            try:
                with surroundings():
                    measure(Step(moment, number, model, logits, kind == "failing"))
            except Exception as error:
                errors.append(error)

        for number in range(STEPS):
            optimizer.zero_grad()
            # Noise from the global random state, which a metric call must not shift.
            noisy = inputs + 0.1 * torch.randn_like(inputs)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
                call("before", number)
                logits = model(noisy)
                loss = F.cross_entropy(logits, targets)
                call("inside", number, logits)
            loss.backward()
            call("after", number)
            optimizer.step()
    return model, [t.detach().clone() for t in (*model.parameters(), *model.buffers())], errors


@functools.cache
def trained_without(kind: str) -> list[Tensor]:
    return train(kind, None)[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_training_ends_in_the_same_weights(name, kind, request):
    if kind == "distributed":
        request.getfixturevalue("process_group")
    model, tensors, errors = train(kind, ALL[name])
    without = trained_without(kind)
    assert all(torch.equal(a, b) for a, b in zip(without, tensors, strict=True))
    if kind == "failing":
        assert errors
    elif (name, kind) in REFUSED:
        assert errors
        assert all(REFUSED[name, kind] in str(error) for error in errors)
    else:
        assert errors == []
    if kind == "hooked":
        trainable = sum(p.requires_grad for p in model.parameters())
        # Once a step for each weight, by the user's own backward.
        assert model.fired.count("gradient") == STEPS * trainable
        assert model.fired.count("accumulated") == STEPS * trainable


def test_the_training_is_one_that_would_notice():
    """Of random numbers that are drawn, of buffers and of gradients that are written to."""
    for careless in (
        lambda model, inputs, targets: torch.rand(1),
        lambda model, inputs, targets: model(inputs),
        lambda model, inputs, targets: model(inputs).sum().backward(),
    ):
        _, tensors, _ = train("plain", function(careless))
        same = [torch.equal(a, b) for a, b in zip(trained_without("plain"), tensors, strict=True)]
        assert not all(same)
