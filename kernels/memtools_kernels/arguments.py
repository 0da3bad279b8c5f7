"""What every operator asks of its arguments before it looks at their shapes and dtypes."""

import torch
from torch import Tensor

__all__ = ["check_dense"]


def check_dense(**arguments: object) -> None:
    """Raise unless each argument is a tensor whose elements all have a place in memory.

    Raises:
        TypeError: If one is no tensor, or is sparse.
    """
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a tensor, got {type(x).__name__}; convert it, for example by "
                "torch.as_tensor"
            )
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be dense, got {x.layout}; pass {name}.to_dense()")
