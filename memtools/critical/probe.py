"""The critical sample ratio of a fixed subset, while a model is trained."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from memtools import seeds
from memtools.batch import check_tensor
from memtools.critical.result import CriticalSearch
from memtools.critical.search import find_critical
from memtools.critical.streams import stream_keys
from memtools.guard import unwrap

__all__ = ["CriticalProbe"]


class CriticalProbe:
    """Searches the same examples again and again, for a training loop.

    The subset is drawn once. In a process group that PyTorch knows of, the ranks share the
    examples among them and agree on the result; all of them have to call the probe.

    Args:
        data: Inputs ``(n, ...)``, or a map-style data set whose items begin with the input.
        size: Number of examples; ``None`` takes all.
        seed: Draws the subset.
        **options: What :func:`memtools.find_critical` takes, ``radius`` at least; for instance
            ``method="auto"``, ``max_steps=10`` or ``time_limit=5``.

    Attributes:
        indices: Which examples, ascending, ``(size,)`` int64.
        inputs: They themselves.

    Raises:
        TypeError: If ``radius`` is missing, or ``data`` is neither a tensor nor a data set.
        ValueError: If ``size`` is below 1, or there are no examples.

    Example:
        >>> import torch, memtools
        >>> inputs, model = torch.rand(100, 5), torch.nn.Linear(5, 2)
        >>> probe = memtools.CriticalProbe(inputs, size=20, radius=0.1, method="auto")
        >>> [int(probe(model).is_critical.sum()) <= 20 for epoch in range(3)]
        [True, True, True]
    """

    def __init__(
        self, data: Tensor | Dataset[Any], *, size: int | None = 500, seed: int = 0, **options: Any
    ) -> None:
        if "radius" not in options:
            raise TypeError("radius must be given: the half-width of the box, in units of the data")
        if not isinstance(data, Tensor) and not hasattr(data, "__getitem__"):
            raise TypeError(
                f"data must be a tensor of inputs or a map-style data set, got "
                f"{type(data).__name__}"
            )
        if isinstance(data, Tensor):
            check_tensor("data", data)
        total = len(data)  # type: ignore[arg-type]
        size = total if size is None else min(size, total)
        if size < 1:
            raise ValueError(f"size must be at least 1 of {total} examples, got {size}")
        order = torch.randperm(total, generator=seeds.generator(seed, "probe"))
        self.indices = order[:size].sort().values
        if isinstance(data, Tensor):
            self.inputs = data.detach()[self.indices.to(data.device)]
        else:
            items = [data[int(i)] for i in self.indices]
            inputs = [item[0] if isinstance(item, tuple | list) else item for item in items]
            self.inputs = torch.stack([torch.as_tensor(x) for x in inputs])
        self._options = options

    def __call__(self, model: nn.Module) -> CriticalSearch:
        """Search the subset with the model as it is.

        Raises:
            ValueError: As :func:`memtools.find_critical`, on every rank if it is raised on one;
                also if the ranks hold different examples.
        """
        weight = next(unwrap(model).parameters(), None)
        if weight is not None:
            self.inputs = self.inputs.to(weight.device)
        if not distributed.is_available() or not distributed.is_initialized():
            return find_critical(model, self.inputs, **self._options)
        return self._shared(model)

    def _shared(self, model: nn.Module) -> CriticalSearch:
        ranks, rank = distributed.get_world_size(), distributed.get_rank()
        part, problem = None, None
        try:
            if rank < len(self.inputs):
                part = find_critical(model, self.inputs[rank::ranks], **self._options)
        except Exception as error:  # not raised yet, since the other ranks would wait for ever
            problem = error
        said = None if problem is None else f"{type(problem).__name__}: {problem}"
        content = int(stream_keys(stream_keys(self.inputs, 0)[None], 0))  # in their order
        mine = (content, said, part and part.to("cpu"))
        parts: list[Any] = [None] * ranks
        distributed.all_gather_object(parts, mine)
        if problem is not None:
            raise problem
        contents, problems, searches = zip(*parts, strict=True)
        for number, other in enumerate(problems):
            if other is not None:
                raise ValueError(f"the search failed on rank {number}, with {other}")
        if len(set(contents)) > 1:
            raise ValueError(
                "data must be the same on every rank, got other examples on some; build the probe "
                "from the whole data set, not from the part that a rank trains on"
            )
        found = [search for search in searches if search is not None]
        return CriticalSearch.interleaved(found).to(self.inputs.device)
