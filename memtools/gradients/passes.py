"""One forward and one backward pass over a batch, and all the norms that can be read off them."""

from dataclasses import dataclass

import torch
from memtools_kernels import row_norms
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from memtools.batch import LossFunction, check_batch, per_example_losses
from memtools.gradients.closed import ClosedForms
from memtools.gradients.layout import is_close
from memtools.gradients.layouts import LAYOUTS, locate, path_of, rows_of, transfer
from memtools.gradients.recorder import Recorder
from memtools.gradients.remainder import remaining_squares
from memtools.gradients.survey import Survey, names_of, survey
from memtools.gradients.tokens import embedded, embedding_name
from memtools.guard import Forward, leaf, plain

__all__ = ["Norms", "Request", "differentiate", "norms_of_batch"]


@dataclass(frozen=True)
class Request:
    """What a pass is to give.

    Attributes:
        loss_fn: Losses of the examples; ``None`` is the cross-entropy.
        p: Order of the norms of the input gradients; ``None`` if they are not wanted.
        parameters: Whether norms of the weight gradients are wanted.
        allow_random: Whether the forward pass may draw random numbers.
        embedding: For integer inputs: the embedding that they are looked up in, or its name.
    """

    loss_fn: LossFunction | None = None
    p: float | None = None
    parameters: bool = False
    allow_random: bool = False
    embedding: str | nn.Module | None = None


@dataclass(frozen=True)
class Norms:
    """Vectors of shape ``(n,)``; ``None`` where they were not asked for."""

    inputs: Tensor | None
    parameters: Tensor | None


def norms_of_batch(forward: Forward, inputs: Tensor, targets: Tensor, request: Request) -> Norms:
    """Norms of the gradients of every example of a batch.

    Raises:
        ValueError: If logits or losses are not what they have to be, the forward pass draws random
            numbers, examples are coupled, or there is no gradient to take.
    """
    tokens = not inputs.is_floating_point()
    if not request.parameters and not tokens:
        return Norms(_input_norms_alone(forward, inputs, targets, request), None)
    x = plain(inputs) if request.p is None or tokens else leaf(inputs)
    recorder = Recorder(forward.weights, x if tokens else None)
    try:
        return _recorded(forward, recorder, x, targets, request)
    finally:
        recorder.release()


def _recorded(
    forward: Forward, recorder: Recorder, x: Tensor, targets: Tensor, request: Request
) -> Norms:
    tokens = not x.is_floating_point()
    try:
        with recorder:
            logits = forward.with_weights(x)
    except (RuntimeError, TypeError):
        if tokens and not recorder.lookups:
            check_batch(x)  # it wants real numbers
        raise
    losses = _losses(forward, logits, targets, request)
    sources = []
    if request.p is not None:
        name = embedding_name(forward.model, request.embedding)
        sources = [embedded(recorder.lookups, name) if tokens else get_gradient_edge(x)]
    if losses.grad_fn is None:
        raise ValueError(
            "model gives logits that do not depend on its weights in a differentiable way; look "
            "for .detach(), torch.no_grad() or argmax in its forward pass"
        )
    found = survey([losses.grad_fn], recorder.calls, [edge.node for edge in sources])
    _find_layouts(forward, recorder, x, logits.detach(), found)
    del logits
    unknown = names_of(forward.trainable, found.unknown)
    closed = ClosedForms(recorder.calls, unknown)
    recorder.listener = closed.receive if request.parameters else None
    got = torch.autograd.grad(losses.sum(), [*sources, *found.first], allow_unused=True)
    del losses
    input_norms = _norms(got[0], request.p) if request.p is not None else None
    if not request.parameters:
        return Norms(input_norms, None)
    rest = [name for name in forward.trainable if name in closed.missing | unknown]
    squares = [closed.squares(), _remaining(forward, rest, x, targets, request)]
    total = sum(s for s in squares if s is not None)
    return Norms(input_norms, torch.as_tensor(total).sqrt())


def _input_norms_alone(
    forward: Forward, inputs: Tensor, targets: Tensor, request: Request
) -> Tensor:
    x = leaf(inputs)
    losses = _losses(forward, forward(x), targets, request)
    return _norms(differentiate(losses.sum(), x), request.p)


def differentiate(value: Tensor, inputs: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Gradient of a number with respect to the inputs, and to nothing else.

    Raises:
        ValueError: If no differentiable path leads from the inputs to the value.
    """
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, inputs, retain_graph=keep_graph, allow_unused=True)
    return _reached(gradient)


def _reached(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(
            "model gives logits that do not depend on its inputs in a differentiable way; "
            "look for .detach(), torch.no_grad() or argmax in its forward pass"
        )
    return gradient


def _norms(gradient: Tensor | None, p: float | None) -> Tensor:
    assert p is not None
    return row_norms(_reached(gradient), p)


def _losses(forward: Forward, logits: Tensor, targets: Tensor, request: Request) -> Tensor:
    losses = per_example_losses(request.loss_fn, logits, targets)
    if not request.allow_random:
        forward.refuse_randomness()
    return losses


def _find_layouts(
    forward: Forward, recorder: Recorder, inputs: Tensor, logits: Tensor, found: Survey
) -> None:
    path = path_of((inputs.shape, logits.shape, logits.dtype), recorder.calls, found.nodes)
    if LAYOUTS.recall(forward.model, path, recorder.calls):
        return

    def run(rows: list[int]) -> Tensor:
        return forward.with_weights(inputs.detach()[rows])

    n = len(inputs)
    if forward.drew_random_numbers():
        with forward.evaluating():
            transfer(forward.weights, recorder.calls, n, run)
            forward.refuse_coupling(inputs)
    else:
        some = locate(forward.weights, recorder.calls, n, run)
        forward.refuse_coupling(inputs)
        if some is not None and not is_close(logits[rows_of(n)], some):
            raise ValueError(
                "model couples the examples of a batch: its logits for two examples are others "
                "when these come without the rest, so that no example has a value of its own; "
                "normalise each example by itself"
            )
    LAYOUTS.remember(forward.model, path, recorder.calls)


def _remaining(
    forward: Forward, names: list[str], inputs: Tensor, targets: Tensor, request: Request
) -> Tensor | None:
    if not names:
        return None
    if request.allow_random and forward.drew_random_numbers():
        raise ValueError(
            f"allow_random cannot be had for {', '.join(names)}: there is no closed form for how "
            "the model uses them, and the random numbers of its forward pass cannot be drawn "
            "again; switch dropout and noise off with model.eval(), or freeze these weights"
        )
    return remaining_squares(forward, names, inputs, targets, request.loss_fn)
