"""The history of every example over a training, and what is made of it."""

# Where a peer is not installed, a type checker cannot find it either.
# pyright: reportMissingImports=false

import collections
import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases.logits import margin
from bench.cases.operation import Operation, Run, Sizes, Way, compiled
from memtools import Ledger

EPOCHS, BATCH, CLASSES = 5, 128, 10


class Presentations(NamedTuple):
    """What a training shows to whoever keeps the history: epochs of batches in a random order."""

    targets: Tensor
    epochs: list[list[tuple[Tensor, Tensor]]]
    """Indices and logits of each batch."""

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return [batch for epoch in self.epochs for batch in epoch]


def presentations(size: int) -> Presentations:
    generator = torch.Generator().manual_seed(0)
    epochs = []
    for _ in range(EPOCHS):
        order = torch.randperm(size, generator=generator).split(BATCH)
        epochs.append([(i, torch.randn(len(i), CLASSES, generator=generator)) for i in order])
    return Presentations(torch.randint(CLASSES, (size,), generator=generator), epochs)


def call(function: Callable[[Presentations], Tensor]) -> Way:
    return lambda shown: partial(function, shown)


def by_ledger(column: str, shown: Presentations) -> Tensor:
    ledger = Ledger(len(shown.targets))
    for index, logits in shown.batches():
        ledger.update(index, logits=logits, targets=shown.targets[index])
    return torch.from_numpy(ledger.scores()[column])


# Area under the margin


def aum_of_sums(shown: Presentations, margin: Callable[..., Tensor] = margin) -> Tensor:
    sums = torch.zeros(len(shown.targets))
    for index, logits in shown.batches():
        sums[index] += margin(logits, shown.targets[index])
    return sums / EPOCHS


def aum_of_dictionary(shown: Presentations) -> Tensor:
    margins = collections.defaultdict(list)
    for index, logits in shown.batches():
        for i, row in zip(index.tolist(), logits.tolist(), strict=True):
            own = row.pop(int(shown.targets[i]))
            margins[i].append(own - max(row))
    return torch.tensor([sum(margins[i]) / EPOCHS for i in range(len(shown.targets))])


def aum_of_vmap(shown: Presentations) -> Tensor:
    each = torch.func.vmap(lambda x, y: margin(x[None], y[None])[0])
    return aum_of_sums(shown, each)


def aum_compiled(shown: Presentations) -> Run:
    return partial(aum_of_sums, shown, compiled(margin))


def aum_package(shown: Presentations) -> Run:
    """The calculator of its authors, without the file that it writes at the end."""
    from aum import AUMCalculator

    def run() -> Tensor:
        calculator = AUMCalculator("", compressed=True)
        for index, logits in shown.batches():
            calculator.update(logits, shown.targets[index], index.tolist())
        each = range(len(shown.targets))
        return torch.tensor([calculator.sums[i] / calculator.counts[i] for i in each])

    return run


def aum_in_float64(shown: Presentations) -> Tensor:
    wide = [[(index, logits.double()) for index, logits in epoch] for epoch in shown.epochs]
    rows = torch.zeros(EPOCHS, len(shown.targets), dtype=torch.float64)
    for row, epoch in zip(rows, wide, strict=True):
        for index, logits in epoch:
            row[index] = margin(logits, shown.targets[index])
    return rows.mean(0)


# Forgetting


def forgetting_of_tensor(shown: Presentations) -> Tensor:
    """A table of right and wrong that is as long as the training."""
    right = torch.zeros(len(shown.targets), EPOCHS, dtype=torch.bool)
    for number, epoch in enumerate(shown.epochs):
        for index, logits in epoch:
            right[index, number] = logits.argmax(1) == shown.targets[index]
    events = (right[:, :-1] & ~right[:, 1:]).sum(1)
    return torch.where(right.any(1), events, EPOCHS).float()


def forgetting_of_dictionary(shown: Presentations) -> Tensor:
    """A list for every example, as in public code."""
    history = collections.defaultdict(list)
    for index, logits in shown.batches():
        for i, row in zip(index.tolist(), logits, strict=True):
            history[i].append(int(row.argmax()) == int(shown.targets[i]))
    events = []
    for i in range(len(shown.targets)):
        of_one = history[i]
        forgotten = sum(a and not b for a, b in itertools.pairwise(of_one))
        events.append(forgotten if any(of_one) else EPOCHS)
    return torch.tensor(events).float()


def forgetting_in_float64(shown: Presentations) -> Tensor:
    """Counted as the training goes on."""
    n = len(shown.targets)
    before = torch.zeros(n, dtype=torch.bool)
    ever, events = before.clone(), torch.zeros(n, dtype=torch.float64)
    for index, logits in shown.batches():
        right = logits.double().argmax(1) == shown.targets[index]
        events[index] += before[index] & ~right
        before[index], ever[index] = right, ever[index] | right
    events[~ever] = EPOCHS
    return events


WHAT = f"2,048 examples, {EPOCHS} epochs in batches of {BATCH}, {CLASSES} classes"
SIZES = Sizes(256, 2048)
OPERATIONS = {
    "area under the margin": Operation(
        WHAT,
        presentations,
        SIZES,
        aum_in_float64,
        1e-5,
        {
            "memtools": call(partial(by_ledger, "aum")),
            "eager": call(aum_of_sums),
            "naive loop": call(aum_of_dictionary),
            "vmap": call(aum_of_vmap),
            "torch.compile": aum_compiled,
            "aum": aum_package,
        },
    ),
    "forgetting events": Operation(
        WHAT,
        presentations,
        SIZES,
        forgetting_in_float64,
        0,
        {
            "memtools": call(partial(by_ledger, "forgetting_events")),
            "eager": call(forgetting_of_tensor),
            "naive loop": call(forgetting_of_dictionary),
        },
    ),
}
