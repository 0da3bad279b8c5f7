"""Scores inside a Ray Data pipeline; importing this needs no Ray."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memtools.critical.box import Bounds
from memtools.scoring import Scorer, Wanted
from memtools.training.devices import resolve_device

__all__ = ["ScoreBatches"]


class ScoreBatches:
    """An actor for ``ray.data.Dataset.map_batches`` that scores the examples of a batch.

    The scores are those of :func:`memtools.scoring.score`, whose arguments these are. ::

        scored = dataset.map_batches(
            ScoreBatches,
            fn_constructor_args=(make_model,),
            fn_constructor_kwargs={"input": "image", "target": "label"},
            batch_size=256,
            num_gpus=1,
            concurrency=8,
        )
        scored.write_parquet("scores")

    Args:
        model: Makes the model, once in each actor, or is the model itself.
        input: Column of the inputs, arrays of one shape.
        target: Column of the class numbers.
        scores: Names from ``memtools.scoring.SCORES``; ``None`` for all but ``is_critical``.
        radius: Adds ``is_critical``, in the units of the inputs.
        method: Of the search.
        bounds: Of the search.
        embedding: For integer inputs, the name of the module that looks them up.
        device: Where to; ``"auto"`` takes the accelerator that Ray gives the actor.

    Raises:
        TypeError: If the model is no module.
        ValueError: If an argument is out of range.

    Example:
        >>> import numpy as np, torch
        >>> actor = ScoreBatches(lambda: torch.nn.Linear(3, 2), scores=["loss"], device="cpu")
        >>> batch = {"input": np.zeros((5, 3), np.float32), "target": np.zeros(5, np.int64)}
        >>> {name: values.shape for name, values in actor(batch).items()}
        {'target': (5,), 'loss': (5,)}
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        *,
        input: str = "input",
        target: str = "target",
        scores: Iterable[str] | None = None,
        radius: float | Tensor | None = None,
        method: str = "lass",
        bounds: Bounds | None = None,
        embedding: str | None = None,
        device: str = "auto",
    ) -> None:
        self._input, self._target = input, target
        wanted = Wanted.of(scores, radius, method, bounds, embedding)
        place = resolve_device(device)
        made = model if isinstance(model, nn.Module) else model()
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module or make one, got {type(made).__name__}; pass a "
                "function without arguments that returns the model"
            )
        self._scorer = Scorer(made.to(place), wanted)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Score a batch.

        Args:
            batch: Columns of n rows, the inputs ``(n, ...)`` and the class numbers ``(n,)`` among
                them.

        Returns:
            The other columns, the targets included, and the scores, ``(n,)`` each.

        Raises:
            ValueError: If a column is missing, is in the way of a score, or cannot be scored.
        """
        for name in (self._input, self._target):
            if name not in batch:
                raise ValueError(
                    f"batch has no column {name!r}, got {', '.join(batch)}; name the columns by "
                    "input= and target="
                )
        kept = {name: values for name, values in batch.items() if name != self._input}
        if taken := kept.keys() & set(self._scorer.wanted.scores):
            raise ValueError(
                f"batch has a column {min(taken)!r} already, which is the name of a score; rename "
                "it, or leave that score out of scores"
            )
        if len(batch[self._target]) == 0:  # Ray asks what becomes of no rows
            return kept | self._scorer.nothing()
        inputs, targets = (self._tensor(batch, name) for name in (self._input, self._target))
        return kept | self._scorer(inputs, targets)

    def _tensor(self, batch: dict[str, NDArray[Any]], name: str) -> Tensor:
        values = np.asarray(batch[name])
        if values.dtype == object:
            raise ValueError(
                f"batch must hold arrays of one shape in column {name!r}, got Python objects; crop "
                "or pad the examples first"
            )
        # A copy: Ray's arrays are views of memory that nobody may write to.
        return torch.from_numpy(values.copy())
