"""Models and data that the tests name on the command line; any of the processes makes them."""

import time
from typing import Any

import torch
from torch import nn

from memtools.data import Tensors

torch.set_num_threads(1)

RADIUS = 0.3
SEARCH: dict[str, Any] = {"radius": RADIUS, "method": "auto"}
SIZE = 50
SPOILT = 17
"""The example that is NaN in `spoilt_data`."""


def model():
    generator = torch.Generator().manual_seed(0)
    made: Any = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Dropout(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 4),
    )
    for tensor in (*made.parameters(), made[1].running_mean):
        tensor.data.normal_(generator=generator)
    return made


def other_model():
    made: Any = model()
    made[-1].bias.data[0] += 1e-6
    return made


def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(SIZE, 1, 6, 6, generator=generator)
    return Tensors(inputs, torch.randint(4, (SIZE,), generator=generator))


def spoilt_data():
    made = data()
    made.inputs[SPOILT, 0, 2, 2] = torch.nan
    return made


class _Slow(Tensors):
    def __getitem__(self, index):
        time.sleep(0.004)  # so that a kill finds something half done
        return super().__getitem__(index)


def slow_data():
    made = data()
    return _Slow(made.inputs, made.targets)


def no_model():
    return [1, 2]


def stream():
    return iter([])


def narrow_model():
    return nn.Linear(5, 4)
