"""What a batch has to be, checked by every metric call, and the losses of its examples."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(logits, targets)`` -> losses of the single examples, shape ``(n,)``."""


def check_batch(inputs: Tensor, targets: Tensor | None = None, *, tokens: bool = False) -> None:
    """Raise unless ``inputs`` is a batch of at least one example that a gradient can reach.

    Args:
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: If given, its first dimension must be ``n`` as well.
        tokens: Whether integers will do.

    Raises:
        TypeError: If an argument is no tensor.
        ValueError: If the batch is empty, integer, or of another length than the targets.
    """
    check_tensor("inputs", inputs)
    if targets is not None:
        check_tensor("targets", targets)
    if inputs.ndim == 0:
        raise ValueError("inputs must have shape (n, ...), got a scalar; add a batch dimension")
    if len(inputs) == 0:
        raise ValueError(
            f"inputs is an empty batch, shape {tuple(inputs.shape)}; at least one example is needed"
        )
    if not (inputs.is_floating_point() or (tokens and _is_integer(inputs))):
        raise ValueError(
            f"inputs must be real floating point, got {inputs.dtype}, which has no gradient; scale "
            "pixels with inputs.float() / 255, or pass token embeddings in place of token ids"
        )
    if targets is not None and (targets.ndim == 0 or len(targets) != len(inputs)):
        raise ValueError(
            f"targets must have one entry for each of the {len(inputs)} inputs, "
            f"got shape {tuple(targets.shape)}; slice both alike"
        )


def check_chunk_size(chunk_size: int | None, default: int) -> int:
    """The chunk size to use: the one asked for, or the default.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is below one.
    """
    if chunk_size is not None and check_whole("chunk_size", chunk_size) < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}; None chooses a size")
    return default if chunk_size is None else chunk_size


def check_whole(name: str, value: Any) -> int:
    """A whole number.

    Raises:
        TypeError: If it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None


def check_logits(logits: Tensor, n: int | None = None, numbers: Tensor | None = None) -> None:
    """Raise unless ``logits`` are finite values of shape ``(n, C)`` with at least two classes.

    Args:
        logits: What the model returned.
        n: Number of examples that went in; ``None`` takes any.
        numbers: What the examples are called in an error, ``(n,)``; ``None`` counts from 0.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the shape is another, or a value is NaN or infinite.
    """
    check_tensor("logits", logits)
    _check_shape(logits, n)
    check_finite(logits, numbers)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_tensor(name: str, value: Any) -> None:
    """Raise unless ``value`` is a tensor that holds numbers a model can compute with.

    Args:
        name: What the argument is called.
        value: The argument.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is sparse, quantised, of 8-bit floats, or on the meta device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(value).__name__}; convert it with torch.as_tensor"
        )
    if value.layout != torch.strided:
        raise ValueError(
            f"{name} must be a dense tensor, got layout {value.layout}; convert it with to_dense()"
        )
    if value.is_quantized:
        raise ValueError(
            f"{name} must not be quantised, got {value.dtype}; convert it with dequantize()"
        )
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device, without data")
    if value.is_floating_point() and value.dtype.itemsize == 1:
        raise ValueError(
            f"{name} must have at least 16 bits, got {value.dtype}; convert them with .float()"
        )


def _check_shape(logits: Tensor, n: int | None) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or n not in (None, len(logits)):
        rows = "n" if n is None else n
        raise ValueError(
            f"logits must have shape ({rows}, C) with C >= 2 classes, got {tuple(logits.shape)}; "
            "a model with a single output per example needs a second column, for instance zeros, "
            "and one that squeezes must keep the batch dimension of a single example"
        )


def check_finite(logits: Tensor, numbers: Tensor | None = None) -> None:
    """Raise if a logit is NaN or infinite, naming the first example that has one.

    Raises:
        ValueError: If there is one.
    """
    remedy = "check the inputs for NaN, or the training for divergence"
    _check_finite("logits", logits, remedy, numbers)


def _check_finite(name: str, values: Tensor, remedy: str, numbers: Tensor | None = None) -> None:
    values = values.detach()
    if math.isfinite(values.sum()):
        return  # a sum is finite only if all are; a large one may overflow, so look again
    finite = torch.isfinite(values)
    finite = finite.flatten(1).all(dim=1) if finite.ndim > 1 else finite
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten()
        first = int(bad[0] if numbers is None else numbers[bad].min())
        raise ValueError(
            f"{name} of {len(bad)} of {len(values)} examples are NaN or infinite (first: example "
            f"{first}); {remedy}"
        )


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Raise unless ``targets`` are class numbers ``0 .. num_classes - 1`` of shape ``(n,)``.

    Args:
        targets: Class numbers of shape ``(n,)``, integer.
        num_classes: Number of classes C.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If the shape, the dtype or a value is another.
    """
    check_tensor("targets", targets)
    if targets.ndim != 1 or not _is_integer(targets):
        raise ValueError(
            "targets must be class numbers of shape (n,) and an integer dtype, "
            f"got shape {tuple(targets.shape)} and {targets.dtype}; convert them with "
            "targets.long()"
        )
    if len(targets) == 0:
        return
    low, high = (int(v) for v in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"targets must lie in 0..{num_classes - 1} for {num_classes} classes, got values from "
            f"{low} to {high}; number the classes from 0 and leave out examples to be ignored"
        )


def per_example_losses(loss_fn: LossFunction | None, logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every example of a batch, shape ``(n,)``.

    Args:
        loss_fn: ``None`` is the cross-entropy, over class numbers ``(n,)`` or soft targets
            ``(n, C)``.
        logits: Output of the model, first dimension n.
        targets: Whatever ``loss_fn`` takes.

    Returns:
        Losses of shape ``(n,)``, attached to the graph of ``logits``.

    Raises:
        TypeError: If ``loss_fn`` returns no tensor.
        ValueError: If logits or losses are not finite, targets are out of range, or the loss is
            averaged.
    """
    if loss_fn is None:
        check_logits(logits, len(targets))
        if targets.shape == logits.shape:
            _check_soft_targets(targets)
        else:
            check_targets(targets, logits.shape[1])
        return unchecked_losses(None, logits, targets)
    if logits.ndim == 0 or len(logits) != len(targets):
        raise ValueError(
            f"logits must have one row for each of the {len(targets)} examples, "
            f"got shape {tuple(logits.shape)}; keep the batch dimension in the model"
        )
    check_finite(logits)
    losses = unchecked_losses(loss_fn, logits, targets)
    _check_finite("losses", losses, "look for log(0) or a division by zero in loss_fn")
    return losses


def unchecked_losses(loss_fn: LossFunction | None, logits: Tensor, targets: Tensor) -> Tensor:
    """As :func:`per_example_losses`, for traced code: shapes are checked, values are not.

    Raises:
        TypeError: If ``loss_fn`` returns no tensor.
        ValueError: If logits are of another shape, or the loss is averaged.
    """
    if loss_fn is None:
        _check_shape(logits, len(targets))
        if not targets.is_floating_point():
            targets = targets.long()
        return F.cross_entropy(logits, targets, reduction="none")
    losses = loss_fn(logits, targets)
    check_losses(losses, len(targets))
    return losses


def _check_soft_targets(targets: Tensor) -> None:
    if not targets.is_floating_point():
        raise ValueError(
            f"targets of the shape of the logits must be probabilities, got {targets.dtype}; "
            "convert one-hot rows with targets.float(), or pass class numbers of shape (n,)"
        )
    if not bool((targets >= 0).all()) or not bool(targets.isfinite().all()):
        raise ValueError(
            "targets of the shape of the logits must be probabilities, got NaN, infinite or "
            "negative values; apply softmax to logits first"
        )


def check_losses(losses: Tensor, n: int) -> None:
    """Raise unless ``losses`` holds one loss for each of ``n`` examples.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is averaged, or of another shape.
    """
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"loss_fn must return a tensor of shape ({n},), got {type(losses).__name__}; do not "
            "call .item() in it"
        )
    if losses.ndim == 0:
        raise ValueError(
            "loss_fn must return the losses of single examples, shape (n,), got one number that is "
            'already averaged or summed; build it with reduction="none"'
        )
    if losses.shape != (n,):
        raise ValueError(
            f"loss_fn must return losses of shape ({n},), got {tuple(losses.shape)}; sum or "
            "average over the trailing dimensions, not over the examples"
        )
