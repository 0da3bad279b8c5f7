"""Numbers by which another model, or other data, are told from those of a folder."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from memtools.guard import plain, unwrap

__all__ = ["fingerprint_of_examples", "fingerprint_of_model"]

DIGEST = 16
"""Bytes of a fingerprint."""


def fingerprint_of_model(model: nn.Module) -> str:
    """Hash of all weights and buffers, and of which weights are frozen."""
    model = unwrap(model)
    digest = hashlib.blake2b(digest_size=DIGEST)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad}".encode())
        _add(digest, parameter)
    for name, buffer in model.named_buffers():
        digest.update(name.encode())
        _add(digest, buffer)
    return digest.hexdigest()


def fingerprint_of_examples(inputs: Tensor, targets: Tensor) -> str:
    """Hash of a few examples."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    _add(digest, inputs)
    _add(digest, targets)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    values = plain(tensor).cpu().contiguous().reshape(-1)
    digest.update(values.view(torch.uint8).numpy())
