"""Many small trainings: one after the other, and at once.

``python -m bench.ensemble [--quick] [--results FOLDER]``: measure, print, and keep the results in
``bench/results``; with ``--quick`` they are kept only in a folder that is named.

The loop is what people write: a model, ``torch.optim.SGD``, ``loss.backward()``, one member after
the other, without evaluation. The engines are timed as users call them, with everything that
:func:`memtools.training.train_ensemble` does around the updates, the last evaluation included.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from bench.kept import RESULTS, circumstances
from memtools.data import Tensors
from memtools.models import MLP
from memtools.training import Member, train_ensemble
from memtools.training.ensemble import auto

EXAMPLES, BATCH, CLASSES, MOMENTUM = 1000, 64, 10, 0.9
FOREACH = (False, True)
"""Ways of ``torch.optim`` to update: one weight after the other, or all at once."""


class Case(NamedTuple):
    name: str
    members: int
    width: int
    features: int
    epochs: int


FULL = (
    Case("width 32", 100, 32, 64, 60),
    Case("width 256", 20, 256, 64, 10),
    Case("width 256, 784 inputs", 20, 256, 784, 5),
)
QUICK = (Case("width 8", 3, 8, 6, 1),)


def ensemble(case: Case) -> list[Member]:
    torch.manual_seed(0)
    data = Tensors(torch.randn(EXAMPLES, case.features), torch.randint(CLASSES, (EXAMPLES,)))
    models = [MLP((case.features,), CLASSES, width=case.width) for _ in range(case.members)]
    return [Member(model, data, seed=seed) for seed, model in enumerate(models)]


def plain_loop(members: Sequence[Member], epochs: int, foreach: bool) -> None:
    for member in members:
        optimizer = torch.optim.SGD(
            member.model.parameters(), lr=member.learning_rate, momentum=MOMENTUM, foreach=foreach
        )
        inputs, targets = member.train.inputs, member.train.targets
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(member.model(inputs[batch]), targets[batch]).backward()
                optimizer.step()


def updates(members: int, epochs: int) -> int:
    return members * epochs * -(-EXAMPLES // BATCH)


def microseconds(call: Callable[[], object], count: int, threads: int) -> float:
    """Time of one update of one member."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6 / count


def measured(case: Case, rounds: int, threads: Sequence[int]) -> dict[str, Any]:
    members = ensemble(case)
    few = members[: min(5, case.members)]
    times: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        times.setdefault(name, []).append(value)

    def engine(name: str, members: Sequence[Member] = members) -> Callable[[], object]:
        own = deepcopy(list(members))
        return lambda: train_ensemble(
            own,
            epochs=case.epochs,
            batch_size=BATCH,
            momentum=MOMENTUM,
            evaluate_every=case.epochs,
            engine=name,  # type: ignore[arg-type]
            device="cpu",
        )

    for _ in range(rounds + 1):  # the first one warms up
        for count in threads:
            for foreach in FOREACH:
                own, total = deepcopy(few), updates(len(few), case.epochs)
                call = lambda own=own, foreach=foreach: plain_loop(own, case.epochs, foreach)  # noqa: E731
                name = f"plain loop, foreach {foreach}, threads {count}"
                note(name, microseconds(call, total, count))
            total = updates(len(few), case.epochs)
            note(f"loop, threads {count}", microseconds(engine("loop", few), total, count))
            for name in ("vmap", "fused"):
                total = updates(case.members, case.epochs)
                note(f"{name}, threads {count}", microseconds(engine(name), total, count))
        # What it costs to measure counts.
        auto._chosen.clear()
        total = updates(case.members, case.epochs)
        note("auto", microseconds(engine("auto"), total, max(threads)))
    chosen = [f"{engine}, threads {count}" for engine, count in auto._chosen.values()]
    return case._asdict() | {
        "examples": EXAMPLES,
        "batch": BATCH,
        "rounds": rounds,
        "chosen": chosen,
        "microseconds": {
            name: dict(zip(("p20", "median", "p80"), quantiles(values[1:]), strict=True))
            for name, values in times.items()
        },
    }


def quantiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.2, 0.5, 0.8])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ensemble")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)
    cases, rounds = (QUICK, 1) if arguments.quick else (FULL, 5)

    about = circumstances() | {"quick": arguments.quick}
    threads = sorted({1, torch.get_num_threads()})
    found = []
    for case in cases:
        found.append(measured(case, rounds, threads))
        print(json.dumps(found[-1], indent=2), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ensemble.json").write_text(json.dumps(about | {"cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
