"""Which engine is the fastest for a group of members, by measurement."""

import time
from collections.abc import Hashable
from copy import copy, deepcopy

import torch

from memtools import seeds
from memtools.training.ensemble.engines import Group
from memtools.training.ensemble.grouping import signature
from memtools.training.ensemble.loop import Loop
from memtools.training.ensemble.order import batch_sizes
from memtools.training.ensemble.stack import Stack
from memtools.training.ensemble.table import Table

__all__ = ["choose"]

UPDATES, ROUNDS = 2, 3
"""Updates that are timed together, and how often."""
SHARE = 0.02
"""Of all updates, for measuring."""
SMALL = 2**20
"""Products of weights and examples in an update of a member, for which threads wait more than they
work, and very long on a busy machine."""
HOPELESS = 2
"""Times as slow as the fastest in the warm-up: not measured any further."""

Choice = tuple[str, int]
"""Engine and number of threads."""

_chosen: dict[Hashable, Choice] = {}


def choose(group: Group) -> Choice:
    """Engine and number of threads for a group; nothing of the measurement is left behind.

    A training that is too short to be worth a measurement takes the fused engine if it can, else
    the loop; on one thread, if an update of a member is small.
    """
    threads = torch.get_num_threads()
    if group.settings.engine != "auto":
        return group.settings.engine, threads
    fused = group.obstacle("fused") is None
    key = _key(group)
    if key in _chosen:
        return _chosen[key]
    counts = sorted({1, threads}) if group.settings.device.type == "cpu" else [threads]
    stacks = ("vmap", "fused") if fused else ("vmap",)
    members = len(group.members)
    cost = 1 + sum(min(members, group.stack_size(engine)) for engine in stacks)
    cost *= (2 + UPDATES * ROUNDS) * len(counts)
    n = len(group.members[0].train)
    updates = group.settings.updates(n) * group.settings.epochs * members
    if updates * SHARE < cost:
        small = _products(group) < SMALL and group.settings.device.type == "cpu"
        return ("fused" if fused else "loop"), 1 if small else threads
    engines = ["loop"] + ["fused"] * fused
    if members > 1 and group.obstacle("vmap") is None:
        engines.append("vmap")
    candidates = [(engine, count) for engine in engines for count in counts]
    try:
        _chosen[key] = _fastest(group, candidates)
    finally:
        torch.set_num_threads(threads)
    return _chosen[key]


def _fastest(group: Group, candidates: list[Choice]) -> Choice:
    if len(candidates) == 1:
        return candidates[0]
    with seeds.kept():
        stacks = {engine: _on_copies(group, engine) for engine, _ in candidates}
        for stack in stacks.values():
            stack.start(1)
            _seconds(stack, 1, 1)
        seconds = {(e, count): _seconds(stacks[e], count, 1) for e, count in candidates}
        limit = HOPELESS * min(seconds.values())
        best = {choice: float("inf") for choice in candidates if seconds[choice] <= limit}
        for _ in range(ROUNDS):
            # In turn, so that a busy moment does not decide.
            for engine, count in best:
                now = _seconds(stacks[engine], count, UPDATES)
                best[engine, count] = min(best[engine, count], now)
    return min(best, key=lambda choice: best[choice])


def _on_copies(group: Group, engine: str) -> Stack:
    """A stack of the size of the training that leaves the models alone."""
    size = min(len(group.members), group.stack_size(engine))
    if engine != "loop":
        # Copies the weights; nobody writes them back.
        return group.stack(engine, range(size), [None] * size)
    member = copy(group.members[0])
    member.model = deepcopy(member.model)
    return Loop([member], [0], Table({0: group.sets[0]}), group.settings, [None])


def _seconds(stack: Stack, threads: int, updates: int) -> float:
    """Time of an update for one member."""
    torch.set_num_threads(threads)
    lengths = torch.tensor([[stack.table.lengths[p]] for p in stack.places])
    sizes = batch_sizes(int(lengths[0]), stack.settings)[:1] * updates
    order = torch.arange(sum(sizes)) % lengths
    start = time.perf_counter()
    total, _ = stack.run(order, sizes)
    total.tolist()  # waits for an accelerator
    return (time.perf_counter() - start) / (updates * len(stack.members))


def _products(group: Group) -> int:
    weights = sum(p.numel() for p in group.members[0].model.parameters())
    return weights * batch_sizes(len(group.sets[0][0]), group.settings)[0]


def _key(group: Group) -> Hashable:
    settings, (inputs, _) = group.settings, group.sets[0]
    return (
        settings.device,
        settings.dtype,
        settings.optimizer,
        settings.momentum > 0,
        settings.loss_fn,
        batch_sizes(len(inputs), settings)[0],
        inputs.shape[1:],
        len(group.members),
        torch.get_num_threads(),
        signature(group.members[0].model),
    )
