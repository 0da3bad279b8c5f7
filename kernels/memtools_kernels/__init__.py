"""Tensor operators of memtools: tensor in, tensor out, no models and no autograd.

Each has a Triton kernel for GPUs and a reference in plain PyTorch for every other device.
"""

from memtools_kernels.box_step import box_noise, box_step
from memtools_kernels.gini import gini
from memtools_kernels.logit_scores import LogitScores, logit_scores
from memtools_kernels.lookup_dots import lookup_dots
from memtools_kernels.lookup_norms import lookup_norms
from memtools_kernels.outer_norms import outer_norms
from memtools_kernels.patch_norms import patch_norms
from memtools_kernels.row_norms import row_norms

__all__ = [
    "LogitScores",
    "box_noise",
    "box_step",
    "gini",
    "logit_scores",
    "lookup_dots",
    "lookup_norms",
    "outer_norms",
    "patch_norms",
    "row_norms",
]
