"""Operator ``memtools::logit_scores``: how each example fares, from one read of its logits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from memtools_kernels.arguments import check_dense
from memtools_kernels.backend import (
    DTYPES,
    HAS_TRITON,
    INTERPRET,
    accumulator,
    ends_in_reference,
    jit,
)

if HAS_TRITON or TYPE_CHECKING:
    import triton
    import triton.language as tl

_CACHED = 1 << 16  # elements the reference works on at once: its scratch memory stays in the cache
_TILE = 2048  # elements a program of the kernel holds at once
_SCORES = 5


class LogitScores(NamedTuple):
    """What `logit_scores` finds; each field has a row for each row of the logits."""

    loss: Tensor
    probability: Tensor
    el2n: Tensor
    margin: Tensor
    entropy: Tensor
    prediction: Tensor
    correct: Tensor
    gradients: Tensor | None


# 1. Reference: the specification, and what runs wherever the kernel does not.
def logit_scores_reference(
    logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operator without a kernel, on any device."""
    n, classes = logits.shape
    scores = logits.new_empty(_SCORES, n, dtype=accumulator(logits.dtype))
    predictions = targets.new_empty(n)
    gradients = logits.new_empty(logits.shape if with_gradients else (0, classes))
    # NumPy has these functions under the same names, and a call of it takes a fraction of the time,
    # which is what counts where there are few classes.
    xp, of = (np, Tensor.numpy) if logits.device.type == "cpu" else (torch, Tensor.detach)
    of_scores, of_predictions, of_targets = of(scores), of(predictions), of(targets)
    rows = max(1, _CACHED // classes)
    with np.errstate(all="ignore"):
        for start in range(0, n, rows):
            block = slice(start, start + rows)
            x = of(logits[block].detach().to(scores.dtype))
            of_scores[:, block], of_predictions[block], gradient = _scores_of_block(
                xp, x, of_targets[block], smoothing, ignore_index, with_gradients
            )
            if gradient is not None:
                gradients[block] = torch.as_tensor(gradient)
    return scores, predictions, gradients


def _scores_of_block(
    xp: Any, x: Any, targets: Any, smoothing: float, ignore_index: int, with_gradients: bool
) -> tuple[Any, Any, Any]:
    """The operator for a few rows, by torch or by NumPy, whose functions these are."""
    n, classes = x.shape
    rows = xp.arange(n)
    counts = (targets >= 0) & (targets < classes) & (targets != ignore_index)
    target, prediction = targets * counts, x.argmax(1)
    top = x[rows, prediction]
    # Sums leave out the largest logit, beside whose 1 the others would be rounded away where a
    # model is sure, and are relative to the second, so that nothing underflows.
    others = x + 0
    others[rows, prediction] = -math.inf
    second = xp.amax(others, 1)
    has_second = second > -math.inf
    others -= xp.where(has_second, second, 0.0)[:, None]
    exponentials = xp.exp(others)
    rest, squares = exponentials.sum(1), (exponentials * exponentials).sum(1)
    # -inf times 0 is NaN, the lowest number times 0 is 0.
    slopes = (others.clip(xp.finfo(x.dtype).min) * exponentials).sum(1)
    lead = top - x[rows, target]
    gap = xp.where(has_second, second - top, 0.0)
    second_weight = xp.where(has_second, xp.exp(gap), 0.0)
    is_top, own = target == prediction, xp.exp(-lead)
    by_rest = second_weight * rest
    whole, log_whole = 1 + by_rest, xp.log1p(by_rest)
    wrong = xp.where(is_top, by_rest, whole - own)
    loss = lead + log_whole
    if smoothing:
        behind = ((x - top[:, None]) / classes).sum(1)  # a sum by itself might overflow
        loss = loss * (1 - smoothing) + smoothing * (log_whole - behind)
    others_alone = second_weight * xp.sqrt(rest * rest + squares)
    beside_top = wrong * wrong + 1 + second_weight * second_weight * squares - own * own
    el2n = xp.where(is_top, others_alone, xp.sqrt(beside_top)) / whole
    margin = xp.where(is_top, top - second, -lead)
    slopes = xp.where(second_weight == 0, 0.0, (slopes + gap * rest) * second_weight)
    scores = xp.stack([loss, own / whole, el2n, margin, log_whole - slopes / whole])
    is_valid = xp.isfinite(top) & xp.isfinite(rest)
    scores[:4, ~counts] = math.nan
    scores[:, ~is_valid] = math.nan
    gradients = None
    if with_gradients:
        gradients = exponentials * second_weight[:, None]
        gradients[rows, prediction] = 1
        gradients /= whole[:, None]
        gradients[rows, target] = smoothing - wrong / whole
        gradients -= smoothing / classes
        gradients[~is_valid] = math.nan
        gradients[~counts] = 0
    return scores, xp.where(is_valid, prediction, -1), gradients


# 2. Kernel: a program owns ROWS rows and walks through their columns, COLS at a time.
@jit
def _logit_scores_kernel(
    logits_ptr, targets_ptr, scores_ptr, predictions_ptr, gradients_ptr, n_rows, n_cols, n_steps,
    stride_row, stride_col, ignore_index, SMOOTHING: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = rows < n_rows
    first_cols = tl.arange(0, COLS)[None, :]
    kind = scores_ptr.dtype.element_ty
    top = tl.full((ROWS, 1), -float("inf"), kind)
    second = top
    rest = tl.zeros((ROWS, 1), kind)
    slopes, squares, mean = rest, rest, rest
    # As an argument, a number would be rounded to float32.
    smoothing = tl.full((1, 1), SMOOTHING, kind)
    classes = tl.zeros((1, 1), kind) + n_cols
    prediction = tl.zeros((ROWS, 1), tl.int32)
    for step in range(n_steps):
        cols = step * COLS + first_cols
        mask = is_row & (cols < n_cols)
        offsets = rows * stride_row + cols.to(tl.int64) * stride_col
        x = tl.load(logits_ptr + offsets, mask=mask, other=-float("inf")).to(kind)
        x = tl.where(x == x, x, float("inf"))  # which makes a row as invalid as NaN does
        tile_top, tile_at = tl.max(x, 1, return_indices=True, keep_dims=True)
        tile_at += step * COLS
        tile_second = tl.max(tl.where(cols == tile_at, -float("inf"), x), 1, keep_dims=True)
        next_second = tl.maximum(tl.maximum(second, tile_second), tl.minimum(top, tile_top))
        is_new = tile_top > top
        prediction = tl.where(is_new, tile_at, prediction)
        # Sums leave out the largest logit and are relative to the second; when there is a larger
        # one, what was the largest joins them.
        pivot = tl.where(next_second > -float("inf"), next_second, 0.0)
        sunk = tl.where(second > -float("inf"), second - pivot, 0.0)
        scale = tl.where(second > -float("inf"), tl.exp(sunk), 0.0)
        joins = is_new & (top > -float("inf"))
        joined_by = tl.where(joins, top - pivot, 0.0)
        joined = tl.where(joins, tl.exp(joined_by), 0.0)
        # Infinitely far times nothing is nothing.
        slopes = tl.where(scale > 0, scale * (slopes + sunk * rest), 0.0)
        slopes += tl.where(joined > 0, joined * joined_by, 0.0)
        rest = scale * rest + joined
        squares = scale * scale * squares + joined * joined
        below = x - pivot
        e = tl.where(cols == prediction, 0.0, tl.exp(below))
        rest += tl.sum(e, 1, keep_dims=True)
        slopes += tl.sum(tl.where(e > 0, e * below, 0.0), 1, keep_dims=True)
        squares += tl.sum(e * e, 1, keep_dims=True)
        next_top = tl.maximum(top, tile_top)
        if SMOOTHING > 0:
            risen = tl.where(top > -float("inf"), top - next_top, 0.0)
            reference = tl.where(next_top > -float("inf"), next_top, 0.0)
            # Divided by the number of classes one by one: their sum might overflow.
            mean += risen * (step * COLS / classes)
            mean += tl.sum(tl.where(mask, (x - reference) / classes, 0.0), 1, keep_dims=True)
        top, second = next_top, next_second
    nan = float("nan")
    is_valid = (top > -float("inf")) & (top < float("inf")) & (rest == rest)
    targets = tl.load(targets_ptr + rows, mask=is_row, other=-1)
    counts = (targets >= 0) & (targets < n_cols) & (targets != ignore_index)
    is_top = targets == prediction
    at_target = logits_ptr + rows * stride_row + targets * stride_col
    lead = top - tl.load(at_target, mask=is_row & counts, other=0.0).to(kind)
    own = tl.exp(-lead)
    gap = tl.where(second > -float("inf"), second - top, 0.0)
    second_weight = tl.where(second > -float("inf"), tl.exp(gap), 0.0)
    by_rest = second_weight * rest
    whole = 1.0 + by_rest
    log_whole = _log1p(by_rest)
    wrong = tl.where(is_top, by_rest, whole - own)
    loss = lead + log_whole
    if SMOOTHING > 0:
        loss = loss * (1.0 - smoothing) + smoothing * (log_whole - mean)
    beside_top = wrong * wrong + 1.0 + second_weight * second_weight * squares - own * own
    others_alone = second_weight * tl.sqrt(rest * rest + squares)
    el2n = tl.where(is_top, others_alone, tl.sqrt(beside_top)) / whole
    margin = tl.where(is_top, top - second, -lead)
    all_slopes = tl.where(second_weight > 0, second_weight * (slopes + gap * rest), 0.0)
    entropy = log_whole - all_slopes / whole
    is_scored = counts & is_valid
    out = scores_ptr + rows
    tl.store(out, tl.where(is_scored, loss, nan), mask=is_row)
    out += n_rows  # a multiple of it might not fit 32 bits
    tl.store(out, tl.where(is_scored, own / whole, nan), mask=is_row)
    out += n_rows
    tl.store(out, tl.where(is_scored, el2n, nan), mask=is_row)
    out += n_rows
    tl.store(out, tl.where(is_scored, margin, nan), mask=is_row)
    out += n_rows
    tl.store(out, tl.where(is_valid, entropy, nan), mask=is_row)
    prediction = tl.where(is_valid, prediction, -1)
    tl.store(predictions_ptr + rows, prediction.to(tl.int64), mask=is_row)
    if gradients_ptr is not None:
        for step in range(n_steps):
            cols = step * COLS + first_cols
            mask = is_row & (cols < n_cols)
            offsets = rows * stride_row + cols.to(tl.int64) * stride_col
            x = tl.load(logits_ptr + offsets, mask=mask, other=0.0).to(kind)
            gradient = tl.exp(x - top) / whole
            gradient = tl.where(cols == targets, smoothing - wrong / whole, gradient)
            gradient -= smoothing / classes
            gradient = tl.where(counts, tl.where(is_valid, gradient, nan), 0.0)
            out_offsets = rows * n_cols + cols
            gradient = gradient.to(gradients_ptr.dtype.element_ty)
            tl.store(gradients_ptr + out_offsets, gradient, mask=mask)


@jit
def _log1p(x):
    # Kahan: what is lost in 1 + x is lost in the quotient too.
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


# 3. Launch wrapper: no validation and no dispatch, so that a test can compile it on CPU tensors.
def _logit_scores_triton(
    logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n_rows, n_cols = logits.shape
    scores = logits.new_empty((_SCORES, n_rows), dtype=accumulator(logits.dtype))
    predictions = targets.new_empty(n_rows)
    gradients = logits.new_empty(logits.shape if with_gradients else (0, n_cols))
    if n_rows == 0:
        return scores, predictions, gradients
    block_cols = min(triton.next_power_of_2(n_cols), _TILE)
    # Rows are short in most uses; 512 elements keep 4 warps busy.
    block_rows = min(triton.next_power_of_2(n_rows), max(1, 512 // block_cols))
    args: list[Any] = [
        logits, targets.contiguous(), scores, predictions, gradients if with_gradients else None,
        n_rows, n_cols, triton.cdiv(n_cols, block_cols), *logits.stride(), ignore_index,
    ]  # fmt: skip
    meta: dict[str, Any] = {"SMOOTHING": smoothing, "ROWS": block_rows, "COLS": block_cols}
    # Eight elements a thread do not quite fit its registers in float64.
    meta["num_warps"] = (8 if block_cols > 1024 else 4) * (scores.element_size() // 4)
    _logit_scores_kernel[(triton.cdiv(n_rows, block_rows),)](*args, **meta)
    return scores, predictions, gradients


# 4. Operator: PyTorch's dispatcher chooses by device (ROCm tensors are "cuda" too).
@torch.library.custom_op("memtools::logit_scores", mutates_args=(), device_types="cuda")
def _logit_scores_op(
    logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    args = logits, targets, smoothing, ignore_index, with_gradients
    if not HAS_TRITON:
        return logit_scores_reference(*args)
    with torch.cuda.device_of(logits):
        return _logit_scores_triton(*args)


@_logit_scores_op.register_kernel(None)  # every device without a kernel of its own: cpu, mps, ...
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _logit_scores_triton(*args) if INTERPRET else logit_scores_reference(*args)


@_logit_scores_op.register_fake
def _(
    logits: Tensor, targets: Tensor, smoothing: float, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, classes = logits.shape
    return (
        logits.new_empty((_SCORES, n), dtype=accumulator(logits.dtype)),
        targets.new_empty(n),
        logits.new_empty((n if with_gradients else 0, classes)),
    )


@_logit_scores_op.register_vmap
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    logits: Tensor,
    targets: Tensor,
    smoothing: float,
    ignore_index: int,
    with_gradients: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    batch = info.batch_size
    logits, targets = (
        x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((logits, targets), in_dims, strict=False)
    )
    n, classes = logits.shape[1:]
    scores, predictions, gradients = _logit_scores_op(
        logits.reshape(batch * n, classes),
        targets.reshape(batch * n),
        smoothing,
        ignore_index,
        with_gradients,
    )
    shape = (batch, n if with_gradients else 0, classes)
    return (
        (scores.view(_SCORES, batch, n), predictions.view(batch, n), gradients.view(shape)),
        (1, 0, 0),
    )


# 5. Public function.
def logit_scores(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    with_gradients: bool = False,
) -> LogitScores:
    r"""Scores of every example from its logits f and its target y, with :math:`p = softmax(f)`.

    .. math:: \text{loss} = -(1 - \epsilon) \log p_y
              - \tfrac{\epsilon}{C} \textstyle\sum_c \log p_c, \quad
              \text{el2n} = \|p - e_y\|_2, \quad
              \text{margin} = f_y - \max_{c \ne y} f_c, \quad
              \text{entropy} = -\textstyle\sum_c p_c \log p_c

    Sums leave out the largest exponential, so that ``loss``, ``el2n`` and ``entropy`` keep all
    their digits where a model is sure, where those of ``softmax`` and ``cross_entropy`` end at 0.
    Computed in float32, in float64 for float64 logits. A logit of ``-inf`` is a class of
    probability 0. A row with NaN, with ``inf`` or without a finite logit has NaN scores and
    prediction -1.

    Not differentiable; ask for the gradients. For the outputs of ``torch.func`` transforms, not
    for their inside, but for ``vmap``, which takes no ``None``: return the fields that you need.

    Args:
        logits: f, ``(n, C)``, float16, bfloat16, float32 or float64, of any strides.
        targets: y, ``(n,)`` int64. A target that is no class, and ``ignore_index``, is ignored:
            the row's ``loss``, ``probability``, ``el2n`` and ``margin`` are NaN, ``correct`` is
            false and its gradients are 0.
        label_smoothing: :math:`\epsilon`, from 0 to 1; in the loss and its gradients only.
        ignore_index: A target to be ignored, be it a class.
        with_gradients: Whether to compute the gradients of the losses.

    Returns:
        ``loss`` (nats), ``probability`` :math:`p_y`, ``el2n`` (Paul et al. 2021, not squared),
        ``margin`` (its mean over a training is AUM, Pleiss et al. 2020; infinite for one class)
        and ``entropy`` (nats), each ``(n,)``, float32 or float64; ``prediction``, the first of the
        largest logits, ``(n,)`` int64; ``correct``, whether that is the target, ``(n,)`` bool;
        ``gradients`` of the losses with respect to the logits, like ``logits``, or ``None``.

    Raises:
        ValueError: If an argument is of the wrong shape, or there is no class.
        TypeError: If an argument is of the wrong dtype, or they are on two devices.
        NotImplementedError: Under forward-mode differentiation, where PyTorch would silently
            take the derivative to be zero.

    Example:
        >>> scores = logit_scores(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        >>> scores.loss
        tensor([0.3133, 3.0486])
        >>> scores.correct
        tensor([ True, False])
    """
    check_dense(logits=logits, targets=targets)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits must have shape (n, C) with at least one class, got {tuple(logits.shape)}; "
            "flatten all other dimensions into the first"
        )
    if logits.dtype not in DTYPES:
        names = "float16, bfloat16, float32 or float64"
        raise TypeError(f"logits must be {names}, got {logits.dtype}; pass logits.float()")
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets must have shape {tuple(logits.shape[:1])}, one for each row of logits, got "
            f"{tuple(targets.shape)}"
        )
    if targets.dtype != torch.int64 or targets.device != logits.device:
        raise TypeError(
            f"targets must be torch.int64 on {logits.device}, got {targets.dtype} on "
            f"{targets.device}; pass targets.to(logits.device).long()"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
    if forward_ad.unpack_dual(logits).tangent is not None:
        raise NotImplementedError(
            "logit_scores has no forward-mode derivative, got logits with a tangent; pass "
            "logits.detach(), or use torch.nn.functional.cross_entropy inside the function"
        )
    run = logit_scores_reference if ends_in_reference(logits, targets) else _logit_scores_op
    scores, prediction, gradients = run(
        logits, targets, float(label_smoothing), ignore_index, with_gradients
    )
    loss, probability, el2n, margin, entropy = scores.unbind(0)
    correct = (prediction == targets) & ~loss.isnan()  # NaN: ignored, out of range, or not finite
    found = gradients if with_gradients else None
    return LogitScores(loss, probability, el2n, margin, entropy, prediction, correct, found)
