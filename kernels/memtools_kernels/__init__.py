"""Tensor operators of memtools: tensor in, tensor out, no models and no autograd.

Each has a Triton kernel for GPUs and a reference in plain PyTorch for every other device.
"""

from memtools_kernels.box_step import box_noise, box_step
from memtools_kernels.row_norms import row_norms

__all__ = ["box_noise", "box_step", "row_norms"]
