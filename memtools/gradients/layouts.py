"""Finds where the examples are at every noted call, and remembers it for each way through a model.

A weight whose examples cannot be found, or not told apart, is left without a layout.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from memtools.gradients.arguments import Arguments, roots_of, tensors_of
from memtools.gradients.layout import Layout, find_layout, is_close
from memtools.gradients.recorder import Call, Recorder, Seen
from memtools.gradients.rules import REPEATING
from memtools.gradients.survey import Survey, survey
from memtools.guard import CoupledExamplesError, Forward
from memtools.seeds import RandomState

__all__ = ["LAYOUTS", "Layouts", "find_layouts", "path_of"]


class Layouts:
    """What is known about a model: for each way through it, the layouts of its calls.

    The models are held weakly. Nothing is remembered of a way on which values may decide where an
    example goes.
    """

    LIMIT = 32
    """Ways remembered for a model."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, dict[Any, list[Layout | None]]] = (
            WeakKeyDictionary()
        )

    def recall(self, model: nn.Module, path: Any, calls: Sequence[Call]) -> bool:
        """Fill in the layouts of calls on a known way; whether it is one."""
        layouts = self._known.get(model, {}).get(path)
        if path is None or layouts is None:
            return False
        for call, layout in zip(calls, layouts, strict=True):
            call.layout = layout
        return True

    def remember(self, model: nn.Module, path: Any, calls: Sequence[Call]) -> None:
        """Keep the layouts of calls for the next time, if all are known."""
        if path is None or any(call.layout is None and call.parts for call in calls):
            return
        known = self._known.setdefault(model, {})
        if len(known) >= self.LIMIT:
            known.clear()
        known[path] = [call.layout for call in calls]


LAYOUTS = Layouts()


class Locator(Recorder):
    """Follows a second forward pass, of some of the examples, to find where they are.

    It compares as it goes, so that no activations are kept.

    Args:
        weights: The tensors that the forward pass uses as weights, by name.
        calls: The calls that were noted for all examples; their layouts are filled in.
        n: How many examples there were.
        rows: Which of them pass this time.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], calls: Sequence[Call], n: int, rows: Sequence[int]
    ) -> None:
        super().__init__(weights, len(rows))
        self._expected, self._all, self._rows = iter(calls), n, rows

    def _keep(self, one: Seen) -> None:
        call = self._work_out(one)
        if call is None:
            return
        full = next(self._expected, None)
        if full is None or full.signature != call.signature:
            self._expected = iter(())  # it took another way, and nothing can be matched from here
            return
        assert call.operand is not None
        assert full.operand is not None
        same = call.signature[0] in REPEATING
        layout = find_layout(full.operand, call.operand, self._all, self._rows, same=same)
        if layout is not None and layout.dim in full.batch_dims:
            full.layout = layout

    def _listen(self, one: Seen, output: Tensor) -> None:
        pass


def path_of(
    model: nn.Module, inputs: Any, calls: Sequence[Call], found: Survey
) -> tuple[Any, ...] | None:
    """What tells one way through a model from another; ``None`` if values may have decided it.

    Args:
        model: The model, for the modes of its modules.
        inputs: Whatever else tells them apart: shapes, dtypes.
        calls: The noted calls.
        found: What autograd's graph says.
    """
    if not found.is_static:
        return None
    shapes = tuple(None if c.operand is None else c.operand.shape for c in calls)
    modes = tuple(module.training for module in model.modules())
    return inputs, modes, tuple(c.signature for c in calls), shapes, tuple(found.details)


def find_layouts(
    forward: Forward, calls: Sequence[Call], found: Survey, batch: Arguments, *, random: bool
) -> None:
    """Fill in the layouts of the calls that were noted in a pass over a batch, as far as possible.

    Args:
        forward: The model.
        calls: The calls.
        found: What autograd's graph says about the outputs of the model.
        batch: The arguments of the pass.
        random: Whether it drew random numbers. The layouts are then found in eval mode.

    Raises:
        ValueError: If examples are coupled.
    """
    if batch.n == 1:
        for call in calls:
            if call.operand is not None and len(call.batch_dims):
                dim = call.batch_dims[0]
                call.layout = Layout(1, dim, call.operand.shape[dim])
        return
    if batch.is_plain:
        forward.refuse_coupling(batch.inputs.detach())
    with forward.evaluating() if random else nullcontext():
        if found.is_static:
            _by_samples(forward, calls, None if random else found, batch)
        elif not random:
            _by_reversal(forward, calls, batch)


def _by_samples(
    forward: Forward, calls: Sequence[Call], found: Survey | None, batch: Arguments
) -> None:
    """From a pass over three examples, and another over two of them, in another order."""
    samples, rows = batch.samples(), [1, 0]
    state = RandomState({batch.inputs.device})
    tracked, edges = samples.tracked()
    recorder = Recorder(forward.weights, 3, None if edges else tracked.inputs)
    try:
        with recorder:
            output = forward.run(tracked.args, tracked.kwargs)
        if not state.is_present():
            return  # it draws random numbers in eval mode as well
        noted = recorder.calls
        way = survey(roots_of(output), noted, [edge.node for edge in edges])
        if found is not None and way.names != found.names:
            return
        if [call.signature for call in noted] != [call.signature for call in calls]:
            return
        with Locator(forward.weights, noted, 3, rows):
            few = samples.run(forward, rows)
        _refuse_company(output, few, 3, rows)
    finally:
        recorder.release()
    for call, sample in zip(calls, noted, strict=True):
        layout = sample.layout
        if layout is None or call.operand is None or sample.operand is None:
            continue
        shape = list(sample.operand.shape)
        shape[layout.dim] = batch.n * layout.repeats
        if list(call.operand.shape) == shape:
            call.layout = replace(layout, n=batch.n)


def _by_reversal(forward: Forward, calls: Sequence[Call], batch: Arguments) -> None:
    """Where values decide on the way: from a pass over the same examples in reverse order."""
    rows = list(range(batch.n))[::-1]
    with Locator(forward.weights, calls, batch.n, rows):
        batch.run(forward, rows)


def _refuse_company(full: Any, few: Any, n: int, rows: list[int]) -> None:
    for a, b in zip(tensors_of(full), tensors_of(few), strict=False):
        if not (a.ndim and b.ndim and len(a) == n and len(b) == len(rows)):
            continue
        # What is infinite, or NaN, both times says nothing of the company.
        same = ~a[rows].isfinite() & ((a[rows] == b) | (a[rows].isnan() & b.isnan()))
        if not is_close(a[rows].masked_fill(same, 0), b.masked_fill(same, 0)):
            raise CoupledExamplesError(
                "model couples the examples of a batch: what it returns for two examples is "
                "another when these come without the rest, so that no example has a value of its "
                "own; normalise each example by itself, and give attention and recurrent layers "
                "batch_first=True"
            )
