"""One sweep from the last update to the first, for many evaluation times and classes at once.

Let u be the gradient of a loss L_t at the weights theta_t. An update theta_s = U(theta_{s-1}, g_s)
turns the adjoint of theta_s into those of theta_{s-1} and of the gradient g_s; the latter, times
the derivatives of g_s, gives the rest of the adjoint of theta_{s-1} and a term of dL_t/dx_i for
every example i of the batch. Adjoints of all the times t go back together, as rows of one matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from memtools.sensitivity.gathered import InputGradients
from memtools.sensitivity.history import History, Update
from memtools.sensitivity.objective import Objective
from memtools.sensitivity.updates import WEIGHT, Vectors

__all__ = ["Column", "Plan", "sweep"]


@dataclass(frozen=True)
class Column:
    """An adjoint: a term of the objective at an evaluation time.

    Attributes:
        time: Number of updates at which the objective is taken.
        term: Which of its terms.
    """

    time: int
    term: int


@dataclass(frozen=True)
class Plan:
    """What a sweep does.

    Attributes:
        history: The training.
        objective: The loss.
        gathered: What is added up for each example.
        places: Where each example of the data set is in the sums, -1 for nowhere, ``(n,)``.
        has_direct: Whether the objective's own gradient by its inputs counts.
        has_indirect: Whether what goes through the training counts.
        window: Updates to go back from each evaluation time.
        block: Adjoints that go together.
        finish: Takes the columns of a block and their sums, ``(K, n, ...)``.
        progress: Called for every update that was gone back, or passed.
    """

    history: History
    objective: Objective
    gathered: InputGradients
    places: Tensor
    has_direct: bool
    has_indirect: bool
    window: int
    block: int
    finish: Callable[[Sequence[Column], Tensor], None]
    progress: Callable[[], None]

    @cached_property
    def is_partial(self) -> bool:
        """Whether some examples are left out of the sums."""
        return bool((self.places < 0).any())

    @cached_property
    def number_of_sums(self) -> int:
        """How many examples are gathered for."""
        return int(self.places.max()) + 1


def sweep(plan: Plan, columns: Sequence[Column]) -> None:
    """Go back through the training once, for these columns."""
    ordered = sorted(columns, key=lambda column: -column.time)
    waiting = [ordered[i : i + plan.block] for i in range(0, len(ordered), plan.block)]
    reach = plan.window if plan.has_indirect else 0
    blocks: list[_Block] = []
    for number in range(ordered[0].time, -1, -1):
        while waiting and waiting[0][0].time == number:
            blocks.append(_Block(plan, waiting.pop(0)))
        for block in blocks:
            block.start(number)
            block.stop(number + reach)
        done = [b for b in blocks if number == 0 or b.columns[-1].time >= number + reach]
        for block in done:
            plan.finish(block.columns, block.sums[: len(block.columns)])
        blocks = [b for b in blocks if b not in done]
        if blocks:
            update = plan.history.update(number)
            for block in blocks:
                block.back(update)
        plan.progress()


class _Block:
    """Some columns, in descending order of time, and where they have come to."""

    def __init__(self, plan: Plan, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._plan = plan
        self._started = self._stopped = 0
        # As many rows as in any block, so that all have the shape of the recorded program.
        state = plan.history.state(columns[0].time)
        self._adjoints: Vectors = {
            name: v.new_zeros(plan.block, len(v)) for name, v in state.vectors.items()
        }
        self._statistics = {
            name: s.new_zeros(plan.block, *s.shape)
            for name, s in plan.objective.statistics(state).items()
        }
        shape = (len(columns), plan.number_of_sums, *plan.gathered.shape)
        self.sums = state.vectors[WEIGHT].new_zeros(shape)

    def start(self, number: int) -> None:
        """Let the columns of this time begin."""
        while self._started < len(self.columns) and self.columns[self._started].time == number:
            row = self._started
            state = self._plan.history.state(number)
            slope = self._plan.objective.slope(self.columns[row].term, state)
            self._adjoints[WEIGHT][row] = slope.weights
            for name, gradient in slope.statistics.items():
                self._statistics[name][row] = gradient
            if self._plan.has_direct:
                self._add(self.sums[row : row + 1], slope.indices, slope.inputs[None])
            if not self._plan.has_indirect:
                self._adjoints[WEIGHT][row] = 0
            self._started += 1

    def stop(self, time: int) -> None:
        """Let the columns of this time go no further back."""
        while self._stopped < self._started and self.columns[self._stopped].time == time:
            for rows in (*self._adjoints.values(), *self._statistics.values()):
                rows[self._stopped] = 0
            self._stopped += 1

    def back(self, update: Update) -> None:
        """Go back one update."""
        self._adjoints, of_gradient, factor = update.pull_back(self._adjoints)
        if self._statistics:  # whose own adjoints are pulled together with the gradient's
            of_gradient, factor = of_gradient * factor, 1.0
        live = self._started
        pulled = update.gradient.pull(of_gradient, self._statistics, live)
        of_weights = self._plan.objective.split(self._adjoints[WEIGHT][:live])
        for rows, more in zip(of_weights, pulled.weights, strict=True):
            rows.add_(more[:live], alpha=factor)
        for name, rows in pulled.statistics.items():
            self._statistics[name][:live] = rows[:live]
        self._add(self.sums[:live], update.indices, pulled.examples[:live], factor)

    def _add(self, sums: Tensor, indices: Tensor, gradients: Tensor, factor: float = 1.0) -> None:
        places = self._plan.places[indices]
        if self._plan.is_partial:
            wanted = places >= 0
            places, gradients = places[wanted], gradients[:, wanted]
        sums.index_add_(1, places, self._plan.gathered.add(gradients), alpha=factor)
