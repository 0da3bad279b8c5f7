"""One forward pass of a watched model, and what the backward pass tells about it."""

import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import (
    GradientEdge,
    Node,
    get_gradient_edge,
    saved_tensors_hooks,
)

from memtools.gradients.arguments import Arguments, roots_of, tensors_of
from memtools.gradients.closed import ClosedForms
from memtools.gradients.layouts import LAYOUTS, find_layouts, path_of
from memtools.gradients.recorder import Recorder
from memtools.gradients.remainder import remaining_squares
from memtools.gradients.survey import Survey, names_of, survey
from memtools.gradients.tokens import embedded, embedding_name
from memtools.guard import CoupledExamplesError, logits_of, untouched

__all__ = ["Batch", "retraced"]

_NUMBERS = count()


class Batch:
    """A forward pass with gradients.

    Args:
        model: The model that is about to be called.
        args: The arguments of the call.
        kwargs: Its keyword arguments.
        embedding: For integer inputs, the embedding that looks them up, or its name.

    Attributes:
        args: The arguments to call it with, so that the gradient of the inputs can be had.
        kwargs: The keyword arguments to call it with.
        n: Number of examples.
        number: Later passes have larger ones.
        factor: What the norms have to be multiplied by.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        embedding: str | nn.Module | None,
    ) -> None:
        self.number, self.factor = next(_NUMBERS), 1.0
        self._model, self._embedding = model, embedding
        self._given = Arguments(args, kwargs)
        self.n = self._given.n
        self._inputs = inputs = self._given.inputs
        self._tokens = not inputs.is_floating_point()
        self._arrive: Callable[[], Callable[[Batch], None] | None] = lambda: None
        self._gradient: Tensor | None = None
        self._problems: dict[str, Exception] = {}
        self._rest: list[str] = []
        self._rest_squares: Tensor | None = None
        self._closed = ClosedForms([])
        self._ends: list[Node] = []
        given = self._given if self._tokens else self._given.with_inputs(self._tap(inputs))
        self.args, self.kwargs = given.args, given.kwargs
        weights = dict(model.named_parameters())
        self._recorder = Recorder(weights, self.n, inputs if self._tokens else None)
        self._recorder.__enter__()

    def close(self) -> None:
        """The forward pass is over."""
        self.args, self.kwargs = (), {}  # the graph, which holds this batch, holds them
        self._recorder.__exit__(None, None, None)

    def forget(self) -> None:
        """There will be no backward pass."""
        self._recorder.release()
        self._ends = []

    def listen(self, output: Any, arrive: Callable[["Batch"], None]) -> None:
        """Prepare for the backward pass.

        Args:
            output: What the model returned.
            arrive: A method, called as a backward pass comes to this batch, more than once, for as
                long as there is an object that it is of.
        """
        # That object holds this batch. In a cycle, the memory of both would wait for the garbage
        # collector, which counts objects and knows nothing of gigabytes.
        self._arrive = weakref.WeakMethod(arrive)
        edges = [get_gradient_edge(t) for t in tensors_of(output) if t.grad_fn is not None]
        try:
            self._prepare(output, len(edges) == 1)
        except Exception as problem:  # the user's training goes on; it comes up on reading
            self._problems.setdefault("parameter", problem)
            if isinstance(problem, CoupledExamplesError):
                self._problems["input"] = problem
        finally:
            self.forget()
            del self._recorder  # it holds this batch
        for edge in edges:
            # On the node, and not on the tensor: a user's hook on the tensor comes first.
            edge.node.register_prehook(lambda grads, nr=edge.output_nr: self._begin(grads[nr]))

    def _prepare(self, output: Any, is_single: bool) -> None:
        recorder = self._recorder
        own = dict(self._model.named_parameters())
        if not all(weight.is_leaf for weight in own.values()):
            raise ValueError(
                "the weights of the model are results of other computations (put in by "
                "torch.func.functional_call, for instance), and no gradients with respect to them "
                "are left by backward()"
            )
        self._find_embedded()
        tensors = [t for t in tensors_of(output) if t.requires_grad]
        found = survey(roots_of(tensors), recorder.calls, self._ends)
        if "CheckpointFunctionBackward" in found.names:
            self._problems["parameter"] = ValueError(
                "the model uses checkpoints that hide its weights from autograd; give "
                "torch.utils.checkpoint.checkpoint use_reentrant=False"
            )
        self._find_layouts([tuple(t.shape) for t in tensors], found)
        trainable = {name: weight for name, weight in own.items() if weight.requires_grad}
        unknown = names_of(trainable, found.unknown)
        self._closed = ClosedForms(recorder.calls, unknown)
        self._rest = sorted(self._closed.missing | unknown)
        recorder.listener = self._receive
        if self._rest:
            self._refuse_rest(output, is_single)

    def reset(self) -> None:
        """Another backward pass begins."""
        if torch.is_grad_enabled():
            self._problems["parameter"] = self._problems["input"] = ValueError(
                "backward() was called with create_graph=True: what is differentiated once more "
                "depends on the weights in ways that are not seen; use memtools.gradient_norms"
            )
        self._closed.reset()
        self._gradient = self._rest_squares = None

    def squares(self) -> Tensor:
        """Squared norms of the weight gradients, as far as the last backward pass has come.

        Raises:
            ValueError: If some weights cannot be done.
        """
        if "parameter" in self._problems:
            raise self._problems["parameter"]
        parts = [s for s in (self._closed.squares(), self._rest_squares) if s is not None]
        return sum(parts[1:], parts[0]) if parts else torch.zeros(self.n)

    def input_gradient(self) -> Tensor:
        """Gradient with respect to the inputs, shape ``(n, ...)``.

        Raises:
            RuntimeError: If the backward pass has not reached the inputs.
            ValueError: If they are integers and no embedding was found.
        """
        if "input" in self._problems:
            raise self._problems["input"]
        if self._gradient is None:
            raise RuntimeError(
                "the backward pass did not reach the inputs of the model; look for .detach(), "
                "torch.no_grad() or backward(inputs=...)"
            )
        return self._gradient

    def _tap(self, inputs: Tensor) -> Tensor:
        tapped = _tap(inputs, self._take_input_gradient)
        self._ends.append(get_gradient_edge(tapped).node)
        return tapped

    def _find_embedded(self) -> None:
        if not self._tokens:
            return
        try:
            name = embedding_name(self._model, self._embedding)
            edge: GradientEdge = embedded(self._recorder.lookups, name)
        except ValueError as problem:
            self._problems["input"] = problem
            return
        self._ends.append(edge.node)
        number = edge.output_nr
        edge.node.register_prehook(lambda grads: self._take_input_gradient(grads[number]))

    def _find_layouts(self, shapes: list[tuple[int, ...]], found: Survey) -> None:
        calls = self._recorder.calls
        path = path_of(self._model, (self._inputs.shape, tuple(shapes)), calls, found)
        if LAYOUTS.recall(self._model, path, calls):
            return
        # A checkpoint around the model counts the tensors that are saved: not those of ours.
        not_saved = saved_tensors_hooks(torch.detach, lambda tensor: tensor)
        with not_saved, untouched(self._model) as forward:
            args, kwargs = self._given.args, self._given.kwargs
            for given in (self._given, Arguments(args, kwargs, alone=True)):
                # As if it had drawn random numbers: whether it has is not known any more. Without
                # success, it may take another way in train mode.
                for random in (True, False):
                    if all(call.layout is not None for call in calls if call.parts):
                        break
                    try:
                        find_layouts(forward, calls, found, given, random=random)
                    except CoupledExamplesError:
                        raise
                    except Exception:  # a batch of another size may not be possible
                        pass
        LAYOUTS.remember(self._model, path, calls)

    def _refuse_rest(self, output: Any, is_single: bool) -> None:
        """Raise unless the forward pass can be done again for the weights without closed form."""
        if not is_single:
            raise self._refusal("the model returns more than one tensor")
        if not self._given.is_plain:
            raise self._refusal("the model has more than one argument")
        with torch.no_grad(), untouched(self._model) as forward:
            again = forward.with_weights(self._inputs.detach())
            if forward.drew_random_numbers():
                raise self._refusal("the random numbers of its forward pass cannot be drawn again")
            first = logits_of(output)
            bound = 100 * torch.finfo(first.dtype).eps
            if not torch.allclose(again, first, rtol=bound, atol=bound * float(first.abs().max())):
                raise self._refusal(
                    "its forward pass gives something else when it is done again, because of "
                    "hooks on the model, or of buffers that it updates"
                )

    def _arrived(self) -> None:
        arrive = self._arrive()
        if arrive is not None:
            arrive(self)

    def _begin(self, gradient: Tensor | None) -> None:
        """The gradient of an output has arrived; if it is the only one, before all others."""
        self._arrived()
        if not self._rest or gradient is None or "parameter" in self._problems:
            return
        try:
            with untouched(self._model) as forward:
                # The loss of an example is linear in the outputs as far as its gradient goes.
                self._rest_squares = remaining_squares(
                    forward, self._rest, self._inputs.detach(), gradient.detach(), _product
                )
        except Exception as problem:  # as in `listen`
            self._problems["parameter"] = problem

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"there is no closed form for how the model uses {', '.join(self._rest)}, and {reason};"
            " freeze these weights, or call memtools.parameter_gradient_norms on the batch"
        )

    def _receive(self, call: Any, gradient: Tensor) -> None:
        self._arrived()
        self._closed.receive(call, gradient)

    def _take_input_gradient(self, gradient: Tensor) -> None:
        self._arrived()
        # The original may be taken for .grad, and be added to.
        shared = self._inputs.requires_grad
        self._gradient = gradient.detach().clone() if shared else gradient.detach()


def retraced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Arguments that leave the same graph as those of a :class:`Batch`, and are not listened to."""
    given = Arguments(args, kwargs)
    if given.inputs.is_floating_point():
        given = given.with_inputs(_tap(given.inputs, lambda gradient: None))
    return given.args, given.kwargs


def _product(outputs: Tensor, gradient: Tensor) -> Tensor:
    return (outputs * gradient).flatten(1).sum(1)


def _tap(inputs: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
    """A copy of the inputs that tells their gradient to ``sink``."""
    anchor = torch.zeros((), requires_grad=True, device=inputs.device)
    return _Tap.apply(inputs, anchor, sink)


class _Tap(torch.autograd.Function):
    """The identity on the inputs, which hears their gradient and keeps it from any leaf."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, anchor: Tensor, sink: Callable[[Tensor], None]) -> Tensor:
        ctx.sink = sink
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.sink(gradients[0])
        return gradients[0] if ctx.needs_input_grad[0] else None, None, None
