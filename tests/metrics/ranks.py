"""Processes of :mod:`test_distributed`: two, then three, over gloo; each writes what it found."""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn

from memtools import metrics
from tests.metrics.cases import CLASSES, MEASURES, N, as_lists, data, network, updated

# The batches of each rank; the last one has none, and some examples come on two ranks.
PARTS = {
    2: [[list(range(N - 1)), [2, 5], [N - 1]], []],
    3: [[[0, 1, 2, 3, 4], [3], [5]], [[5, 6, 7], [8, 9, 10, 11, 0]], []],
}


def work(rank, size, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store{size}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    warnings.simplefilter("ignore", UserWarning)  # compute without an update, on the last rank
    found = {name: results(measure, rank, size) for name, measure in MEASURES.items()}
    found["convergence"] = convergence(rank, size)
    found["refused"] = refused(rank)
    found["wrapped"] = wrapped(rank, size)
    (Path(folder) / f"{size}-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def results(measure, rank, size):
    metric = updated(measure.build(), measure, *PARTS[size][rank])
    own = {name: value.clone() for name, value in metric.metric_state.items()}
    together = as_lists(metric.compute())
    if any(not torch.equal(own[name], value) for name, value in metric.metric_state.items()):
        return "its own state has changed"
    metric.reset()
    updated(metric, measure, *PARTS[size][rank])
    return [together, as_lists(metric.compute())]


def convergence(rank, size):
    """Rank 0 alone is right in epoch 1, all of them are in epoch 2."""
    metric, targets = metrics.TimeToConvergence(), torch.zeros(3).long()
    story = []
    for epoch in (1, 2, 3):
        right = epoch == 2 or rank == 0
        for _ in range(0 if rank == size - 1 else 2 - rank):
            metric.update(torch.eye(2)[torch.full((3,), 0 if right else 1)], targets)
        if size == 2 and rank == 1 and epoch == 1:  # otherwise nobody would be wrong
            metric.update(torch.eye(2)[[1]], targets[:1])
        metric.end_epoch()
        story.append(as_lists(metric.compute()))
    try:
        metric.end_epoch()
    except ValueError as error:
        story.append(str(error))
    return story


def refused(rank):
    """The ranks have built different metrics."""
    metric = metrics.InputGradientGini(N + rank)
    try:
        metric.compute()
    except ValueError as error:
        return str(error)
    return "not refused"


def wrapped(rank, size):
    """Only some ranks call a model that waits for all of them when it is called itself."""
    model = nn.parallel.DistributedDataParallel(network())
    metric = metrics.ClassSensitivity(CLASSES)
    inputs, targets = data()
    if rank < size - 1:
        metric.update(model, inputs[rank :: size - 1], targets[rank :: size - 1])
    return as_lists(metric.compute())


if __name__ == "__main__":
    # Forked, so that torch is imported once.
    context = multiprocessing.get_context("fork")
    for size in PARTS:
        processes = [context.Process(target=work, args=(r, size, sys.argv[1])) for r in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(1)
