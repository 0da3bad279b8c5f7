"""Launches of every operator as they happen in use, to be compiled for GPUs that are not there."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from memtools_kernels.box_step import _box_step_triton
from memtools_kernels.gini import _gini_triton
from memtools_kernels.logit_scores import _logit_scores_triton
from memtools_kernels.lookup_dots import _lookup_dots_triton
from memtools_kernels.lookup_norms import _lookup_norms_triton
from memtools_kernels.outer_norms import _outer_norms_triton
from memtools_kernels.patch_norms import _patch_norms_triton
from memtools_kernels.row_norms import _row_norms_triton
from memtools_kernels.windows import Window
from torch import Tensor

THREE_BY_THREE = Window((3, 3), (1, 1), (1, 1), (1, 1))
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64


class Launch(NamedTuple):
    """A call of a launch wrapper; tensors are on the meta device, whose addresses are aligned."""

    operator: str
    case: str
    call: Callable[[], object]
    is_wide: bool
    """Whether memory is contiguous and aligned, so that loads move 16 bytes per thread."""


def _meta(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _counts(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int64)


def _box_step(shape: tuple[int, int], dtype: torch.dtype, *, noisy: bool) -> None:
    points, gradients, low, high = (_meta(*shape, dtype=dtype) for _ in range(4))
    kind = F64 if dtype == F64 else F32
    unit, sizes = (_meta(n, dtype=kind) for n in (shape[1], shape[0]))
    noise = (unit, _counts(shape[0]), _counts(shape[0])) if noisy else (None, None, None)
    _box_step_triton(points, gradients, low, high, unit, sizes, *noise)


def _patches(size: int, channels: int, dtype: torch.dtype) -> None:
    images, vectors = (_meta(64, 1, channels, size, size, dtype=dtype) for _ in range(2))
    _patch_norms_triton(images, vectors, THREE_BY_THREE, 1)


def launches() -> Iterator[Launch]:
    for dtype in (BF16, F32, F64):
        yield from _launches(dtype)


def _launches(dtype: torch.dtype) -> Iterator[Launch]:
    def launch(
        operator: str, case: str, call: Callable[[], object], *, wide: bool = True
    ) -> Launch:
        return Launch(operator, f"{case}, {str(dtype).removeprefix('torch.')}", call, wide)

    def x(*shape: int) -> Tensor:
        return _meta(*shape, dtype=dtype)

    def scores(classes: int, *, smoothing: float = 0.0, gradients: bool = False) -> None:
        _logit_scores_triton(x(512, classes), _counts(512), smoothing, -100, gradients)

    def dots() -> None:
        sequence = x(64, 1024, 768)
        _lookup_dots_triton(_counts(64, 1024), sequence, x(64, 1024, 50_257), sequence)

    yield launch("row_norms", "64 x 4096", lambda: _row_norms_triton([x(64, 4096)], 2.0, False))
    yield launch("row_norms", "two tensors",
                 lambda: _row_norms_triton([x(64, 4096), x(64, 640)], 1.0, False))  # fmt: skip
    yield launch("box_step", "1000 x 3072, noise",
                 lambda: _box_step((1000, 3072), dtype, noisy=True), wide=False)  # fmt: skip
    yield launch("box_step", "1000 x 3072, no noise",
                 lambda: _box_step((1000, 3072), dtype, noisy=False), wide=False)  # fmt: skip
    yield launch("logit_scores", "512 x 10", lambda: scores(10), wide=False)
    yield launch("logit_scores", "512 x 1024", lambda: scores(1024))
    yield launch("logit_scores", "512 x 65536, gradients",
                 lambda: scores(65536, smoothing=0.1, gradients=True))  # fmt: skip
    yield launch("outer_norms", "T = 1024, direct",
                 lambda: _outer_norms_triton(x(64, 1024, 768), x(64, 1024, 768)))  # fmt: skip
    yield launch("outer_norms", "T = 64, Gram",
                 lambda: _outer_norms_triton(x(64, 64, 1024), x(64, 64, 1024)))  # fmt: skip
    yield launch("patch_norms", "64 channels, 32^2, direct",
                 lambda: _patches(32, 64, dtype), wide=False)  # fmt: skip
    yield launch("patch_norms", "512 channels, 4^2, Gram",
                 lambda: _patches(4, 512, dtype), wide=False)  # fmt: skip
    yield launch("lookup_norms", "64 x 1024 of 768",
                 lambda: _lookup_norms_triton(_counts(64, 1024), x(64, 1024, 768)))  # fmt: skip
    yield launch("lookup_dots", "64 x 1024 of 768", dots)
    yield launch("gini", "10 x 65536", lambda: _gini_triton(x(10, 65536), None), wide=False)
    yield launch("gini", "10 x 65536, weights",
                 lambda: _gini_triton(x(10, 65536), x(10, 65536)), wide=False)  # fmt: skip


def huge_launches() -> Iterator[Launch]:
    """Tensors of more than 2^31 elements, which 32 bits do not count."""
    row, many = 2**31 + 64, 2**16

    def launch(operator: str, call: Callable[[], object]) -> Launch:
        return Launch(operator, "beyond 2^31 elements", call, False)

    def scores() -> None:
        _logit_scores_triton(_meta(2 * many, 2 * many), _counts(2 * many), 0.0, -100, True)

    def dots() -> None:
        sequence = _meta(2, many, 64)
        _lookup_dots_triton(_counts(2, many), sequence, _meta(2, many, many), sequence)

    yield launch("row_norms", lambda: _row_norms_triton([_meta(2, row)], 2.0, False))
    yield launch("box_step", lambda: _box_step((2, row), F32, noisy=True))
    yield launch("logit_scores", scores)
    yield launch("outer_norms",
                 lambda: _outer_norms_triton(_meta(2, many, many), _meta(2, many, 64)))  # fmt: skip
    yield launch("patch_norms", lambda: _patches(many // 2, 4, BF16))
    yield launch("lookup_norms",
                 lambda: _lookup_norms_triton(_counts(2, many), _meta(2, many, many)))  # fmt: skip
    yield launch("lookup_dots", dots)
    yield launch("gini", lambda: _gini_triton(_meta(2, row), None))
