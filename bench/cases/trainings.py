"""Loss sensitivity through a training, and the training loop itself."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Subset

import memtools
from bench.cases.gradients import by_class, in_float64
from bench.cases.operation import Operation, Run, Sizes, Way, compiled
from bench.unrolled import Training, one_graph, paper, recorded, unrolled
from memtools import seeds
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Trainer

# Loss sensitivity


class Recorded(NamedTuple):
    """A training, and the numbers of updates after which the loss is looked at."""

    training: Training
    tape: memtools.TrainingTape
    times: list[int]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.training.inputs, self.training.targets


def record(evaluations: int, updates: int) -> Recorded:
    training = paper(updates)
    tape = recorded(training)
    return Recorded(training, tape, tape.spaced(evaluations))


def training_in_float64(training: Training) -> Training:
    wide = in_float64(training.model)
    return training._replace(model=wide, inputs=training.inputs.double())


def of_loss(function: Callable[[Training, Sequence[int]], Tensor]) -> Way:
    return lambda problem: partial(function, problem.training, problem.times)


def graph_by_graph(training: Training, times: Sequence[int]) -> Tensor:
    """The training anew for each evaluation time."""
    return torch.cat([unrolled(training, [time]) for time in times])


def terms(training: Training, times: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The inputs, and what each class adds to the mean loss at each time, ``(times, C)``."""
    x, history = one_graph(training, max(times))
    members = F.one_hot(training.targets)
    losses = [
        F.cross_entropy(
            functional_call(training.model, history[time], (x,)), training.targets, reduction="none"
        )
        for time in times
    ]
    return x, torch.stack(losses) @ members.to(x) / len(x)


def backwards_at_once(x: Tensor, values: Tensor) -> Tensor:
    """Norms of the gradients of some values, ``(values, n)``, by ``vmap`` over autograd."""
    rows = torch.eye(len(values)).to(values)
    (gradients,) = torch.autograd.grad(values, x, rows, is_grads_batched=True)
    return gradients.flatten(2).abs().sum(2)


def times_at_once(training: Training, times: Sequence[int]) -> Tensor:
    x, of_classes = terms(training, times)
    return backwards_at_once(x, of_classes.sum(1))


def compiled_unrolled(problem: Recorded) -> Run:
    """With the network's gradient compiled, which the graph then has to differentiate."""
    training = problem.training
    model = compiled(copy.deepcopy(training.model))
    return partial(unrolled, training._replace(model=model), problem.times)


def our_sensitivity(problem: Recorded) -> Run:
    return lambda: memtools.loss_sensitivity(problem.tape, problem.data, at=problem.times)


# For each class


def our_classes(problem: Recorded) -> Run:
    return lambda: memtools.per_class_loss_sensitivity(problem.tape, problem.data, at=problem.times)


def classes_one_by_one(training: Training, times: Sequence[int]) -> Tensor:
    x, of_classes = terms(training, times)
    norms = [
        torch.autograd.grad(term, x, retain_graph=True)[0].flatten(1).abs().sum(1)
        for term in of_classes.flatten()
    ]
    return mean_of_times(torch.stack(norms), training, times)


def classes_at_once(training: Training, times: Sequence[int]) -> Tensor:
    x, of_classes = terms(training, times)
    return mean_of_times(backwards_at_once(x, of_classes.flatten()), training, times)


def mean_of_times(norms: Tensor, training: Training, times: Sequence[int]) -> Tensor:
    return by_class(norms.unflatten(0, (len(times), -1)).mean(0), training.targets)


def classes_graph_by_graph(training: Training, times: Sequence[int]) -> Tensor:
    """The training anew for each time and class."""
    norms = []
    for time in times:
        for number in range(int(training.targets.max()) + 1):
            x, of_classes = terms(training, [time])
            (gradient,) = torch.autograd.grad(of_classes[0, number], x)
            norms.append(gradient.flatten(1).abs().sum(1))
    return mean_of_times(torch.stack(norms), training, times)


# The loop


class Lesson(NamedTuple):
    """What is to be learnt in an epoch, and in which order."""

    model: nn.Module
    data: Tensors
    batches: list[Tensor]


BATCH = 64


def lesson(size: int) -> Lesson:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP((784,), 10, width=64, depth=1)
        data = Tensors(torch.rand(size, 784), torch.randint(10, (size,)))
    order = torch.randperm(size, generator=seeds.generator(0, "order", 1))
    return Lesson(model, data, list(order.split(BATCH)))


def by_trainer(lesson: Lesson) -> Run:
    def run() -> Tensor:
        model = copy.deepcopy(lesson.model)
        Trainer(model, epochs=1, batch_size=BATCH, device="cpu").fit(lesson.data)
        return parameters_to_vector(model.parameters())

    return run


def bare_loop(
    lesson: Lesson, compile: Callable[[nn.Module], Callable[..., Tensor]] = lambda m: m
) -> Run:
    """Batches are indexed out of the tensors."""
    _, data, batches = lesson

    def run() -> Tensor:
        model = copy.deepcopy(lesson.model)
        call, optimizer = compile(model), torch.optim.SGD(model.parameters(), lr=0.01)
        for indices in batches:
            optimizer.zero_grad()
            F.cross_entropy(call(data.inputs[indices]), data.targets[indices]).backward()
            optimizer.step()
        return parameters_to_vector(model.parameters())

    return run


def loader_loop(lesson: Lesson) -> Run:
    """Batches come out of a ``DataLoader``, example by example."""
    _, data, batches = lesson
    loader = DataLoader(Subset(data, torch.cat(batches).tolist()), batch_size=BATCH)

    def run() -> Tensor:
        model = copy.deepcopy(lesson.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for inputs, targets, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        return parameters_to_vector(model.parameters())

    return run


def weights_in_float64(lesson: Lesson) -> Tensor:
    wide = lesson._replace(
        model=in_float64(lesson.model), data=lesson.data.to("cpu", torch.float64)
    )
    return bare_loop(wide)().detach()


PAPER = "TinyMLP on 1,000 digits of 14x14"
OPERATIONS = {
    "loss sensitivity": Operation(
        f"{PAPER}, at 10 times of 40 updates",
        partial(record, 10),
        Sizes(10, 40),
        lambda problem: unrolled(training_in_float64(problem.training), problem.times),
        1e-4,
        {
            "memtools": our_sensitivity,
            "eager": of_loss(unrolled),
            "naive loop": of_loss(graph_by_graph),
            "vmap": of_loss(times_at_once),
            "torch.compile": compiled_unrolled,
        },
    ),
    "loss sensitivity by class": Operation(
        f"{PAPER}, at 2 times of 40 updates",
        partial(record, 2),
        Sizes(4, 40),
        lambda problem: classes_graph_by_graph(
            training_in_float64(problem.training), problem.times
        ),
        1e-4,
        {
            "memtools": our_classes,
            "eager": of_loss(classes_one_by_one),
            "naive loop": of_loss(classes_graph_by_graph),
            "vmap": of_loss(classes_at_once),
        },
    ),
    "training, an epoch": Operation(
        f"MLP 784-64-10, 6,400 examples in batches of {BATCH}",
        lesson,
        Sizes(256, 6400),
        weights_in_float64,
        1e-5,
        {
            "memtools": by_trainer,
            "eager": bare_loop,
            "naive loop": loader_loop,
            "torch.compile": lambda lesson: bare_loop(lesson, compiled),
        },
    ),
}
