"""What the operators are timed on, beside the eager code that everybody writes first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import memtools_kernels as kernels
import torch
from torch import Tensor
from torch.nn import functional as F

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Problem:
    """An operator and a size.

    Attributes:
        operator: Its name.
        name: The size, in words.
        make: The inputs, on a device.
        ours: The operator.
        naive: The same by eager PyTorch; what it takes memory for is freed when it returns.
        moved: Bytes that have to be read and written at least.
        multiplied: Multiply-adds of matrix products; 0 where bytes are what counts.
        gives_same: Whether both give the same: random noise does not.
    """

    operator: str
    name: str
    make: Callable[[torch.device], Inputs]
    ours: Callable[..., Any]
    naive: Callable[..., Any]
    moved: int
    multiplied: int = 0
    gives_same: bool = True


def random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def numbers(device: torch.device, below: int, *shape: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(below)
    return torch.randint(below, shape, generator=generator, device=device)


def _row_norms(n: int, d: int, p: float, dtype: torch.dtype) -> Problem:
    def naive(x: Tensor) -> Tensor:
        rows = x.flatten(1).to(torch.promote_types(dtype, torch.float32))
        return rows.abs().sum(1) if p == 1 else rows.square().sum(1).sqrt()

    return Problem(
        "row_norms", f"{n} x {d}, p = {p:g}, {_short(dtype)}",
        lambda device: (random(device, n, d, dtype=dtype),),
        partial(kernels.row_norms, p=p), naive, n * d * dtype.itemsize,
    )  # fmt: skip


def _several_row_norms(n: int, *widths: int) -> Problem:
    return Problem(
        "row_norms", f"{n} rows over {len(widths)} tensors",
        lambda device: ([random(device, n, d) for d in widths],),
        kernels.row_norms,
        lambda xs: torch.cat([x.flatten(1) for x in xs], 1).square().sum(1).sqrt(),
        4 * n * sum(widths),
    )  # fmt: skip


def _box_step(n: int, d: int, *, noisy: bool) -> Problem:
    def make(device: torch.device) -> Inputs:
        x, gradient = random(device, n, d), random(device, n, d + 1)[:, 1:].contiguous()
        keys, steps = numbers(device, 2**40, n), torch.zeros(n, dtype=torch.int64, device=device)
        return x, gradient, x - 0.1, x + 0.1, torch.full((d,), 0.1, device=device), keys, steps

    def ours(
        x: Tensor, gradient: Tensor, low: Tensor, high: Tensor, unit: Tensor, keys: Tensor,
        steps: Tensor,
    ) -> Tensor:  # fmt: skip
        points, sizes = x.clone(), torch.ones_like(x[:, 0])
        noise = {"noise": unit, "keys": keys, "steps": steps} if noisy else {}
        kernels.box_step(points, gradient, low, high, unit=unit, sizes=sizes, **noise)
        return points

    def naive(
        x: Tensor, gradient: Tensor, low: Tensor, high: Tensor, unit: Tensor, keys: Tensor,
        steps: Tensor,
    ) -> Tensor:  # fmt: skip
        points = x + unit * gradient.sign()
        if noisy:
            # A stream for each example, whatever batch it is in.
            generator = torch.Generator(x.device)
            streams = (generator.manual_seed(key) for key in (keys + steps).tolist())
            noise = [torch.randn(d, generator=each, device=x.device) for each in streams]
            points = points + unit * torch.stack(noise)
        return torch.minimum(torch.maximum(points, low), high)

    name = f"{n} x {d}, {'noise' if noisy else 'no noise'}"
    moved = (5 + 2) * 4 * n * d  # a copy of the points comes first
    return Problem("box_step", name, make, ours, naive, moved, gives_same=not noisy)


def _logit_scores(n: int, classes: int, dtype: torch.dtype) -> Problem:
    def naive(logits: Tensor, targets: Tensor) -> Tensor:
        wide, column = logits.float(), targets[:, None]
        p = wide.softmax(1)
        other = wide.scatter(1, column, -torch.inf).amax(1)
        return torch.stack(
            [
                F.cross_entropy(wide, targets, reduction="none"),
                p.gather(1, column)[:, 0],
                (p - F.one_hot(targets, classes)).square().sum(1).sqrt(),
                wide.gather(1, column)[:, 0] - other,
                torch.special.entr(p).sum(1),
                (wide.argmax(1) == targets).float(),
            ]
        )

    def ours(logits: Tensor, targets: Tensor) -> Tensor:
        scores = kernels.logit_scores(logits, targets)
        return torch.stack([*scores[:5], scores.correct.float()])

    return Problem(
        "logit_scores", f"{n} x {classes}, {_short(dtype)}",
        lambda device: (random(device, n, classes, dtype=dtype), numbers(device, classes, n)),
        ours, naive, n * classes * dtype.itemsize,
    )  # fmt: skip


def _outer_norms(n: int, t: int, r: int, c: int, dtype: torch.dtype) -> Problem:
    direct, gram = t * r * c, t * t * (r + c) // 2
    return Problem(
        "outer_norms", f"{n} x ({t} x {r}, {t} x {c}), {_short(dtype)}",
        lambda device: (random(device, n, t, r, dtype=dtype), random(device, n, t, c, dtype=dtype)),
        kernels.outer_norms,
        lambda rows, columns: torch.bmm(rows.mT, columns).float().square().sum((1, 2)),
        n * t * (r + c) * dtype.itemsize, n * min(direct, gram),
    )  # fmt: skip


def _patch_norms(n: int, c: int, o: int, size: int, k: int, dtype: torch.dtype) -> Problem:
    def naive(images: Tensor, vectors: Tensor) -> Tensor:
        patches = F.unfold(images, k, padding=k // 2)
        gradients = torch.bmm(vectors.flatten(2), patches.mT)
        return gradients.float().square().sum((1, 2))

    t, patch = size * size, c * k * k
    return Problem(
        "patch_norms", f"{n} x {size}^2, {c} to {o} channels, kernel {k}, {_short(dtype)}",
        lambda device: (
            random(device, n, c, size, size, dtype=dtype),
            random(device, n, o, size, size, dtype=dtype),
        ),
        partial(kernels.patch_norms, kernel_size=(k, k), padding=(k // 2, k // 2)), naive,
        n * t * (c + o) * dtype.itemsize, n * min(t * o * patch, t * t * (o + patch) // 2),
    )  # fmt: skip


def _lookup_norms(n: int, t: int, d: int, size: int) -> Problem:
    def naive(indices: Tensor, gradients: Tensor) -> Tensor:
        table = gradients.new_zeros(n, size, d)
        table.scatter_add_(1, indices[..., None].expand(-1, -1, d), gradients)
        return table.square().sum((1, 2))

    return Problem(
        "lookup_norms", f"{n} x {t} lookups of {d}, table of {size}",
        lambda device: (numbers(device, size, n, t), random(device, n, t, d)),
        kernels.lookup_norms, naive, n * t * (4 * d + 8),
    )  # fmt: skip


def _lookup_dots(n: int, t: int, d: int, size: int) -> Problem:
    def naive(indices: Tensor, gradients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        table = gradients.new_zeros(n, size, d)
        table.scatter_add_(1, indices[..., None].expand(-1, -1, d), gradients)
        return (table * torch.bmm(rows.mT, columns)).sum((1, 2))

    def make(device: torch.device) -> Inputs:
        gradients, columns = random(device, n, t, d), random(device, n, t, d + 1)[..., 1:]
        return numbers(device, size, n, t), gradients, random(device, n, t, size), columns

    return Problem(
        "lookup_dots", f"{n} x {t} lookups of {d}, table of {size}", make, kernels.lookup_dots,
        naive, 4 * n * t * (2 * d + t), n * t * t * d,
    )  # fmt: skip


def _gini(k: int, n: int) -> Problem:
    def naive(values: Tensor) -> Tensor:
        ordered = values.double().sort(1).values
        ranks = torch.arange(1, n + 1, device=values.device)
        return 2 * (ranks * ordered).sum(1) / (n * ordered.sum(1)) - (n + 1) / n

    return Problem(
        "gini", f"{k} x {n}", lambda device: (random(device, k, n).abs(),), kernels.gini, naive,
        4 * k * n,
    )  # fmt: skip


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def on_cpu() -> Iterator[Problem]:
    f32 = torch.float32
    yield _row_norms(256, 784, 1, f32)
    yield _row_norms(64, 200_000, 1, f32)
    yield _row_norms(64, 200_000, 2, f32)
    yield _several_row_norms(64, 100_000, 50_000, 640)
    yield _box_step(1000, 784, noisy=False)
    yield _box_step(1000, 784, noisy=True)
    yield _logit_scores(256, 10, f32)
    yield _logit_scores(4096, 1000, f32)
    yield _outer_norms(32, 64, 128, 512, f32)
    yield _outer_norms(8, 2048, 64, 64, f32)
    yield _outer_norms(64, 16, 512, 512, f32)
    yield _patch_norms(16, 64, 64, 32, 3, f32)
    yield _patch_norms(16, 512, 512, 4, 3, f32)
    yield _lookup_norms(32, 64, 128, 30_000)
    yield _lookup_dots(8, 64, 128, 5_000)
    yield _gini(1, 50_000)
    yield _gini(100, 1000)


def on_gpu() -> Iterator[Problem]:
    f32, bf16 = torch.float32, torch.bfloat16
    yield _row_norms(256, 1 << 18, 1, f32)  # 256 MiB
    yield _row_norms(256, 1 << 18, 2, f32)
    yield _row_norms(1 << 16, 1 << 11, 2, bf16)
    yield _several_row_norms(256, 1 << 17, 1 << 17, 640)
    yield _box_step(1 << 14, 3072, noisy=False)
    yield _box_step(1 << 14, 3072, noisy=True)
    yield _logit_scores(1 << 16, 1000, f32)
    yield _logit_scores(1 << 13, 50_257, bf16)
    yield _logit_scores(1 << 11, 1 << 18, bf16)
    yield _outer_norms(64, 1024, 768, 3072, bf16)
    yield _outer_norms(64, 64, 768, 768, bf16)
    yield _outer_norms(64, 4096, 768, 768, f32)
    yield _patch_norms(64, 64, 64, 56, 3, bf16)
    yield _patch_norms(64, 512, 512, 7, 3, bf16)
    yield _lookup_norms(64, 1024, 768, 2_000)  # the naive table of more does not fit
    yield _lookup_dots(16, 1024, 768, 5_000)
    yield _gini(1, 10_000_000)
    yield _gini(1000, 10_000)


def small() -> Iterator[Problem]:
    """A size of each, to see that all of it runs."""
    f32 = torch.float32
    yield _row_norms(5, 30, 1, f32)
    yield _several_row_norms(5, 30, 7)
    yield _box_step(5, 9, noisy=False)
    yield _box_step(5, 9, noisy=True)
    yield _logit_scores(5, 7, f32)
    yield _outer_norms(3, 6, 4, 5, f32)
    yield _patch_norms(2, 3, 4, 5, 3, f32)
    yield _lookup_norms(2, 6, 3, 9)
    yield _lookup_dots(2, 6, 3, 9)
    yield _gini(2, 20)


def off_by(ours: Any, exact: Any) -> float:
    """Largest difference, over the largest value."""
    ours, exact = torch.as_tensor(ours).double(), torch.as_tensor(exact).double()
    scale = exact.abs().max()
    return float((ours - exact).abs().max() / scale) if scale > 0 else float(ours.abs().max())


def widened(inputs: Inputs) -> Inputs:
    """The same inputs in float64, for an exact result."""

    def wide(x: Any) -> Any:
        if isinstance(x, list):
            return [wide(y) for y in x]
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    return tuple(wide(x) for x in inputs)
