"""Random labels and random inputs, put into any data set, with a mask of what was touched."""

import operator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from memtools import seeds
from memtools.batch import check_targets
from memtools.data.tensors import column, targets_of

__all__ = ["Noisy", "random_inputs", "random_labels"]

LabelMode = Literal["uniform", "other", "permuted"]


class Noisy(Dataset[tuple[Any, int, int]]):
    """A data set with some labels or inputs replaced; items are ``(input, target, index)``.

    Attributes:
        base: The data set underneath; it is not changed.
        targets: Labels as they are now, ``(n,)`` int64.
        clean_targets: Labels before any noise, ``(n,)`` int64.
        is_corrupted: Which examples were chosen, here or in ``base``, ``(n,)`` bool. Under
            ``mode="uniform"`` a chosen one may have got its own label back.
    """

    def __init__(
        self,
        base: Any,
        targets: Tensor,
        chosen: Tensor,
        input_noise: tuple[Tensor, Tensor, int] | None = None,
    ) -> None:
        self.base = base
        self.targets = targets
        below = column(base, "clean_targets")
        self.clean_targets = targets_of(base) if below is None else below.cpu()
        already = column(base, "is_corrupted")
        self.is_corrupted = chosen if already is None else chosen | already.cpu()
        self._chosen = chosen
        self._input_noise = input_noise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        index = operator.index(index)  # a sampler may give NumPy's numbers or tensors
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} examples")
        value = self.base[index][0]
        if self._input_noise is not None and self._chosen[index]:
            mean, std, seed = self._input_noise
            # Each example draws from a stream of its own: fixed once and for all, without storing.
            noise = torch.randn(value.shape, generator=seeds.generator(seed, "input", index))
            value = (mean + std * noise).to(value)
        return value, int(self.targets[index]), index


def random_labels(
    dataset: Any,
    fraction: float = 1.0,
    *,
    mode: LabelMode = "uniform",
    seed: int = 0,
    num_classes: int | None = None,
) -> Noisy:
    """Replace the labels of a share of the examples at random (randY of Arpit et al. 2017).

    Args:
        dataset: Map-style, items ``(input, target, ...)``; it is not changed.
        fraction: Share of examples to choose; the number is rounded.
        mode: ``"uniform"`` draws from all classes, the true one included (Zhang et al. 2017);
            ``"other"`` from the other classes; ``"permuted"`` shuffles the labels of the chosen
            examples among them.
        seed: Fixes which examples are chosen and what they get.
        num_classes: Number of classes; ``None`` is the largest label plus one.

    Returns:
        A :class:`Noisy` view of the data.

    Raises:
        ValueError: If an argument is out of range, or the targets are no class numbers.

    Example:
        >>> from memtools.data import Tensors, random_labels
        >>> data = Tensors(torch.zeros(8, 2), torch.arange(8) % 4)
        >>> noisy = random_labels(data, 0.5, mode="other")
        >>> int(noisy.is_corrupted.sum()), int((noisy.targets != noisy.clean_targets).sum())
        (4, 4)
    """
    if mode not in ("uniform", "other", "permuted"):
        raise ValueError(f'mode must be "uniform", "other" or "permuted", got {mode!r}')
    targets = targets_of(dataset).clone()
    classes = int(targets.max()) + 1 if num_classes is None else num_classes
    check_targets(targets, classes)
    if mode == "other" and classes < 2:
        raise ValueError(f"num_classes must be at least 2 for mode='other', got {classes}")
    chosen = _choose(len(targets), fraction, seed)
    where = chosen.nonzero().flatten()
    draw = seeds.generator(seed, "labels", mode)
    if mode == "permuted":
        targets[where] = targets[where[torch.randperm(len(where), generator=draw)]]
    elif mode == "uniform":
        targets[where] = torch.randint(classes, (len(where),), generator=draw)
    else:
        shift = torch.randint(1, classes, (len(where),), generator=draw)
        targets[where] = (targets[where] + shift) % classes
    return Noisy(dataset, targets, chosen)


def random_inputs(
    dataset: Any,
    fraction: float = 1.0,
    *,
    statistics: Literal["all", "channel", "element"] = "all",
    seed: int = 0,
) -> Noisy:
    """Replace the inputs of a share of the examples by Gaussian noise (randX of Arpit et al. 2017).

    The noise is independent, has the mean and the variance of the data, is drawn once and then
    fixed; labels are kept. One pass over the data reads its statistics.

    Args:
        dataset: Map-style, items ``(input, target, ...)`` with tensors of one shape as inputs; it
            is not changed.
        fraction: Share of examples to choose; the number is rounded.
        statistics: Mean and variance of ``"all"`` values together, of each ``"channel"`` (first
            dimension of an example), or of each ``"element"``. The paper does not say which.
        seed: Fixes which examples are chosen and what they get.

    Returns:
        A :class:`Noisy` view of the data.

    Raises:
        ValueError: If an argument is out of range, the inputs are no floating-point tensors, or
            their mean or deviation is not finite.
    """
    if statistics not in ("all", "channel", "element"):
        raise ValueError(f'statistics must be "all", "channel" or "element", got {statistics!r}')
    targets = targets_of(dataset)
    chosen = _choose(len(targets), fraction, seed)
    mean, std = _mean_and_std(dataset, statistics)
    return Noisy(dataset, targets, chosen, (mean, std, seed))


def _choose(n: int, fraction: float, seed: int) -> Tensor:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    # The order does not depend on the fraction: what is noisy at 20% is noisy at 40% as well.
    order = torch.randperm(n, generator=seeds.generator(seed, "chosen"))
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[order[: round(fraction * n)]] = True
    return chosen


def _mean_and_std(dataset: Any, statistics: str) -> tuple[Tensor, Tensor]:
    total = squares = torch.zeros((), dtype=torch.float64)
    for i in range(len(dataset)):
        value = dataset[i][0]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"dataset must give floating-point tensors as inputs, got {kind}; "
                "add a transform such as torchvision's ToTensor"
            )
        value = value.double().cpu()
        if i and value.shape != total.shape:
            raise ValueError(
                f"dataset must give inputs of one shape, got {tuple(total.shape)} and "
                f"{tuple(value.shape)} (example {i}); resize or crop them first"
            )
        total = total + value
        squares = squares + value.square()
    mean, second = total / len(dataset), squares / len(dataset)
    if statistics != "element":
        keep = 0 if statistics == "channel" else -1
        dims = [d for d in range(mean.ndim) if d != keep]
        if dims:  # torch takes none as all
            mean, second = mean.mean(dims, keepdim=True), second.mean(dims, keepdim=True)
    mean, std = mean.float(), (second - mean.square()).clamp(min=0).sqrt().float()
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        raise ValueError(
            "dataset must give inputs whose mean and deviation are finite in float32, got NaN, "
            "infinite or too large ones; leave those examples out or scale the inputs"
        )
    return mean, std
