"""A long training that is watched: does memory grow, are files left open, does it slow down?

``python -m bench.long_run [--minutes 60] [--results FOLDER]``: train on one thread with ``watch``,
a ledger on the disk, torchmetrics and a probe, and look at the process every few seconds. The
results go into ``bench/results``; of less than an hour only into a folder that is named.
"""

import argparse
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import memtools
from bench.kept import RESULTS, circumstances
from bench.memory import resident_kib
from memtools import metrics

SECONDS = 2.0
"""Between two looks."""
WARM_UP, BLOCKS = 0.1, 20
"""The share of the time that is left out, and what the rest is cut into for the slopes."""


def looks(minutes: float, folder: Path) -> Iterator[dict[str, float]]:
    """Train, and say every few seconds how the process is doing."""
    split = memtools.data.load("digits")
    train, n = split.train, len(split.train)
    assert isinstance(train, memtools.data.Tensors)
    model = memtools.models.build("mlp", split.input_shape, len(split.class_names), width=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    ledger = memtools.Ledger(n, folder / "ledger", dtype="float16")
    probe = memtools.Probe(train.inputs[:200], train.targets[:200], radius=1 / 16)
    pulls, hardness = metrics.ParameterGradientGini(n), metrics.ScoreGini(n)
    begun = looked = time.monotonic()
    cpu, steps, epoch = time.process_time(), 0, 0
    while looked - begun < 60 * minutes:
        epoch += 1
        for inputs, targets, indices in DataLoader(train, batch_size=32, shuffle=True):
            with memtools.watch(model) as watched:
                logits = model(inputs)
                optimizer.zero_grad()
                F.cross_entropy(logits, targets).backward()
                norms = watched.input_gradient_norms()
            optimizer.step()
            ledger.update(indices, logits=logits, targets=targets, sensitivity=norms)
            hardness.update(values=norms, indices=indices)
            steps += 1
        pulls.update(model, train.inputs[:200], train.targets[:200], torch.arange(200))
        for metric in (pulls, hardness):
            metric.compute()
            metric.reset()
        probe(model, epoch)
        if time.monotonic() - looked < SECONDS:
            continue
        looked, now = time.monotonic(), time.process_time()
        yield {
            "minutes": (looked - begun) / 60,
            "resident_mib": resident_kib() / 1024,
            "open_files": len(list(Path("/proc/self/fd").iterdir())),
            "objects": len(gc.get_objects()),
            "cpu_milliseconds": 1000 * (now - cpu) / steps,
            "steps": steps,
        }
        cpu, steps = time.process_time(), 0


def slope(minutes: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """What a quantity gains in an hour: least squares over the means of blocks, 95% interval."""
    from scipy.stats import linregress, t

    blocks = np.array_split(np.arange(len(values)), BLOCKS)
    hours = np.array([minutes[block].mean() for block in blocks]) / 60
    fit: Any = linregress(hours, np.array([values[block].mean() for block in blocks]))
    reach = float(t.ppf(0.975, BLOCKS - 2)) * fit.stderr
    return {
        "per_hour": float(fit.slope),
        "low": float(fit.slope - reach),
        "high": float(fit.slope + reach),
        "mean": float(values.mean()),
    }


def summarised(seen: list[dict[str, float]]) -> dict[str, Any]:
    """The slopes of all that was looked at, after the warm-up."""
    columns = {name: np.array([look[name] for look in seen]) for name in seen[0]}
    kept = columns["minutes"] >= WARM_UP * columns["minutes"][-1]
    quantities = ("resident_mib", "open_files", "objects", "cpu_milliseconds")
    return {
        "minutes": float(columns["minutes"][-1]),
        "steps": int(columns["steps"].sum()),
        "looks": len(seen),
        "slopes": {q: slope(columns["minutes"][kept], columns[q][kept]) for q in quantities},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.long_run")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    folder = arguments.results or (RESULTS if arguments.minutes >= 60 else None)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    scratch = Path(tempfile.mkdtemp())
    try:
        seen = list(looks(arguments.minutes, scratch))
    finally:
        shutil.rmtree(scratch)
    about = circumstances()
    found = about | summarised(seen)
    print(json.dumps(found, indent=2))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "long_run.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
