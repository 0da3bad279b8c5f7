"""A process of :mod:`test_probe`: alone, or one of two under torchrun; writes what it found."""

import json
import os
import sys
from typing import Any

import torch
from torch import distributed, nn

from memtools import CriticalProbe

torch.set_num_threads(1)
out, rank = sys.argv[1], int(os.environ.get("RANK", 0))
found = {}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).double()


def told(search):
    return {
        "is_critical": search.is_critical.tolist(),
        "points": search.points.tolist(),
        "predicted": search.predicted.tolist(),
        "first_step": search.first_step.tolist(),
        "max_steps": search.max_steps,
        "is_complete": search.is_complete,
        "screening": search.screening and vars(search.screening),
        "is_certified": None if search.is_certified is None else search.is_certified.tolist(),
    }


def probe(name, data, **options: Any):
    options = {"radius": 0.3} | options
    try:
        search = CriticalProbe(data, **options)(network())
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
    else:
        found[name] = told(search)


class FailsForOne(nn.Module):
    """Raises where it meets the number 7, which one of the ranks holds."""

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, x):
        if (x == 7).any():
            raise ZeroDivisionError("seven")
        return self.model(x)


if __name__ == "__main__":
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    data = torch.randn(90, 6, generator=torch.Generator().manual_seed(1)).double()
    for method in ("lass", "auto"):
        for size in (1, 2, 5, None):
            probe(f"{method} {size}", data, size=size, method=method)
    probe("certified", data, method="auto", certify=True)
    probe("limited", data, time_limit=1e-9, batch_size=4)
    probe("other examples", data + rank)
    probe("another order", data if rank == 0 else data.flip(0), size=None)
    probe("another number", data[: 90 - rank], size=None)
    data[81] = 7
    try:
        CriticalProbe(data, radius=0.3, size=None)(FailsForOne())
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    probe("bad option", data, max_steps=-1 if rank else 5)
    probe("afterwards", data, size=7)
    with open(os.path.join(out, f"{rank}.json"), "w") as file:
        json.dump(found, file)
    if distributed.is_initialized():
        distributed.destroy_process_group()
