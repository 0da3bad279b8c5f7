"""A ledger of ten million examples: what an update, a score and the memory cost.

``python -m bench.ledger [--quick] [--results FOLDER]``: measure on one thread, print, and keep the
results in ``bench/results``; with ``--quick`` they are kept only in a folder that is named.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.models import resnet18

import memtools
from bench.kept import RESULTS, circumstances
from bench.memory import OwnMemory, resident_kib

BATCH, CLASSES = 1024, 10
SIDE = 32
"""Of the images of the training step; of larger ones the ledger's share would be less."""


def measured(num_examples: int, epochs: int, batch: int) -> dict[str, Any]:
    """A training's updates in a random order, with a training step now and then beside them."""
    folder = Path(tempfile.mkdtemp())
    logits, targets = torch.randn(batch, CLASSES), torch.randint(CLASSES, (batch,))
    step = training_step(batch)
    step()
    ledger = memtools.Ledger(num_examples, folder / "ledger", dtype="float16")
    ledger.update(torch.arange(batch) % num_examples, logits=logits, targets=targets)
    ledger.load_state_dict({"step": torch.tensor(-1)})
    memory = []
    updates, steps = [], []
    generator = np.random.default_rng(0)
    for epoch in range(epochs):
        start = time.perf_counter()
        step()
        steps.append(time.perf_counter() - start)
        before = peak = resident_kib()  # the step's own memory comes and goes
        for number in range(-(-num_examples // batch)):
            # Every example once an epoch, in another order each time, without a list of all.
            places = np.arange(number * batch, min((number + 1) * batch, num_examples))
            index = generator.permutation((places * 7368787 + epoch) % num_examples)
            start = time.perf_counter()
            ledger.update(index, logits=logits[: len(index)], targets=targets[: len(index)])
            updates.append(time.perf_counter() - start)
            if number % 100 == 0:
                peak = max(peak, resident_kib())
        memory.append(peak - before)
        print(f"epoch {epoch + 1}: {memory[-1] / 1024:.0f} MiB more than before", flush=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    del step
    with OwnMemory() as memory_of_scores:
        start = time.perf_counter()
        table = ledger.scores()
        seconds = time.perf_counter() - start
    assert (table["presentations"] == epochs).all()
    shutil.rmtree(folder)
    ours, of_step = np.array(updates), np.array(steps)
    return {
        "num_examples": num_examples,
        "epochs": epochs,
        "batch": batch,
        "presentations": int(table["presentations"].sum()),
        "update_milliseconds": dict(zip(("p20", "median", "p80"), quantiles(ours), strict=True)),
        "step_milliseconds": dict(zip(("p20", "median", "p80"), quantiles(of_step), strict=True)),
        "share_of_a_step": float(np.median(ours) / np.median(of_step)),
        "memory_mib": max(memory) / 1024,
        "folder_mib": size / 2**20,
        "scores_seconds": seconds,
        "scores_memory_mib": memory_of_scores.peak_mib,
        "scores_mib": sum(values.nbytes for values in table.values()) / 2**20,
    }


def training_step(batch: int) -> Any:
    """A step of resnet18 on small images."""
    model = resnet18(num_classes=CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = torch.randn(batch, 3, SIDE, SIDE), torch.randint(CLASSES, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def quantiles(seconds: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(seconds, [0.2, 0.5, 0.8]) * 1000]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (None if arguments.quick else RESULTS)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    about = circumstances() | {"quick": arguments.quick}
    sizes = (1000, 2, 64) if arguments.quick else (10**7, 10, BATCH)
    found = about | measured(*sizes)
    print(json.dumps(found, indent=2))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ledger.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
