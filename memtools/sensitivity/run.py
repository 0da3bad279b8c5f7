"""One call of a public function: checked arguments, the sweeps, nothing left behind."""

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from memtools.guard import untouched
from memtools.progress import progress_bar
from memtools.sensitivity.examples import Examples
from memtools.sensitivity.gathered import InputGradients
from memtools.sensitivity.history import History
from memtools.sensitivity.objective import Objective
from memtools.sensitivity.products import Products
from memtools.sensitivity.replay import Replay
from memtools.sensitivity.storage import Snapshot
from memtools.sensitivity.sweep import Column, Plan, sweep
from memtools.sensitivity.tape import TrainingTape
from memtools.sensitivity.updates import WEIGHT

__all__ = ["Part", "Run"]

Part = Literal["total", "direct", "indirect"]

CACHE = 2**23
"""On a CPU, so many bytes of activations are worked on at once."""


class Run:
    """What the three functions share: the checked arguments, and the sweeps."""

    def __init__(
        self,
        tape: TrainingTape,
        data: Any,
        at: Any,
        part: Part,
        objective: Any,
        window: int | None,
        memory: int,
        progress: bool,
    ) -> None:
        if not isinstance(tape, TrainingTape):
            raise TypeError(f"tape must be a memtools.TrainingTape, got {type(tape).__name__}")
        if len(tape) == 0:
            raise ValueError("tape holds no update; call tape.record in the training loop")
        if not isinstance(part, str) or part not in ("total", "direct", "indirect"):
            raise ValueError(f'part must be "total", "direct" or "indirect", got {part!r}')
        if window is not None and (not isinstance(window, int) or window < 0):
            raise ValueError(f"window must be a number of updates from 0, got {window!r}")
        if not isinstance(memory, int | float) or not memory >= 1:
            raise ValueError(f"memory must be a positive number of bytes, got {memory}")
        self.times = _times(at, len(tape))
        self.examples = Examples("data", data, tape.device, tape.dtype)
        self._own_objective = objective is None
        self._objective = (
            self.examples
            if objective is None
            else Examples("objective", objective, tape.device, tape.dtype)
        )
        self._tape = tape
        self._part = part
        self._window = len(tape) + 1 if window is None else window
        self._memory = memory
        self._progress = progress

    def repeats(self, columns: Sequence[Column]) -> Tensor:
        """How often the time of each column was asked for."""
        asked = Counter(self.times)
        counts = [asked[column.time] for column in columns]
        return torch.tensor(counts, device=self._tape.device, dtype=self._tape.dtype)

    def rows(self, gathered: InputGradients, places: Tensor) -> Tensor:
        """A row of results for each time that was asked for."""
        found: dict[int, Tensor] = {}

        def finish(columns: Sequence[Column], sums: Tensor) -> None:
            for column, row in zip(columns, gathered.result(sums), strict=True):
                found[column.time] = row.clone()

        everything = [torch.arange(len(self._objective), device=self._tape.device)]
        self.sweep(gathered, places, everything, finish)
        return torch.stack([found[time] for time in self.times])

    def sweep(
        self,
        gathered: InputGradients,
        places: Tensor,
        terms: list[Tensor],
        finish: Callable[[Sequence[Column], Tensor], None],
    ) -> None:
        """Go back through the training, as often as the bound on memory makes necessary."""
        with untouched(self._tape.model, evaluating=True):
            self._sweep(gathered, places, terms, finish)

    def _sweep(
        self,
        gathered: InputGradients,
        places: Tensor,
        terms: list[Tensor],
        finish: Callable[[Sequence[Column], Tensor], None],
    ) -> None:
        tape = self._tape
        times = sorted(set(self.times), reverse=True)
        columns = [Column(time, term) for time in times for term in range(len(terms))]
        replay = Replay(tape)
        with torch.no_grad():
            state = tape.storage.get(0, tape.device)
        of_one = len(state.vectors) * 3 * len(state.vectors[WEIGHT])
        of_one += int((places >= 0).sum()) * math.prod(gathered.shape)
        at_once = max(1, self._memory // (of_one * tape.dtype.itemsize))
        block = min(len(columns), at_once, self._block(replay, state))
        products = Products(replay, block, of_losses=gathered.of_losses)
        examples = self.examples
        chunks = [columns[i : i + at_once] for i in range(0, len(columns), at_once)]
        _settle_allocator(tape.device)
        steps = sum(chunk[0].time + 1 for chunk in chunks)
        with progress_bar(self._progress, "loss sensitivity", steps) as update:
            done = count(1)
            for chunk in chunks:
                plan = Plan(
                    history=History(tape, examples, products),
                    objective=Objective(replay, self._objective, terms),
                    gathered=gathered,
                    places=places.to(tape.device),
                    has_direct=(
                        self._part != "indirect" and self._own_objective and not gathered.of_losses
                    ),
                    has_indirect=self._part != "direct",
                    window=self._window,
                    block=block,
                    finish=finish,
                    progress=lambda: update(next(done)),
                )
                sweep(plan, chunk)

    def _block(self, replay: Replay, state: Snapshot) -> int:
        """How many adjoints go together: as many as their activations leave room for."""
        size = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel() * tensor.element_size()
            return tensor.detach()

        largest = max(self._tape.steps, key=lambda step: len(step.indices))
        indices = self.examples.indices(largest.indices, self._tape.steps.index(largest) + 1)
        weights = [w.detach().requires_grad_() for w in replay.split(state.vectors[WEIGHT])]
        with (
            replay.as_in(largest),
            torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor),
        ):
            replay.losses(
                weights,
                state.buffers,
                self.examples.inputs[indices],
                self.examples.targets[indices],
            )
        # Forward and backward each make about as much as the forward pass saves.
        bound = self._memory // 4
        if self._tape.device.type == "cpu":
            bound = min(bound, CACHE)
        return max(1, bound // max(1, size))


def _settle_allocator(device: torch.device) -> None:
    """Make malloc keep the memory of temporaries, instead of asking for fresh pages each time.

    Glibc hands blocks above a threshold back at once, and raises the threshold to the size of the
    largest block that was freed, up to 32 MiB. Fresh pages cost more than the arithmetic on them.
    """
    if device.type == "cpu":
        torch.empty(31 * 2**20, dtype=torch.uint8)


def _times(at: Any, total: int) -> list[int]:
    if at is None:
        return list(range(1, total + 1))
    try:
        at = at.tolist() if isinstance(at, Tensor) else at
        times = [operator.index(t) for t in (at if hasattr(at, "__iter__") else [at])]
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"at must be numbers of updates, got {at!r}") from error
    if not times or not all(0 <= time <= total for time in times):
        raise ValueError(
            f"at must be numbers of updates between 0 and {total}, at least one, got {times}"
        )
    return times
