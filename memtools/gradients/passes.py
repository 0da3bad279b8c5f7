"""One forward and one backward pass over a batch, and all the norms that can be read off them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from memtools_kernels import row_norms
from torch import Tensor, nn

from memtools.batch import LossFunction, check_batch, per_example_losses, unchecked_losses
from memtools.gradients.arguments import Alias, Arguments, roots_of
from memtools.gradients.closed import ClosedForms
from memtools.gradients.layout import is_close
from memtools.gradients.layouts import LAYOUTS, find_layouts, path_of
from memtools.gradients.recorder import Recorder
from memtools.gradients.remainder import remaining_squares
from memtools.gradients.survey import names_of, survey
from memtools.gradients.tokens import embedded, embedding_name
from memtools.guard import Forward, logits_of, plain

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
    tokens = inputs if not inputs.is_floating_point() else None
    for copied in (False, True):
        recorder = Recorder(forward.weights, len(inputs), tokens)
        try:
            return _recorded(forward, recorder, inputs, targets, request, copied=copied)
        except RuntimeError as error:
            # It works on its inputs in place, which has cost a part of a forward pass to find out.
            if copied or Alias.__name__ not in str(error):
                raise
        finally:
            recorder.release()
    raise AssertionError


def _recorded(
    forward: Forward,
    recorder: Recorder,
    inputs: Tensor,
    targets: Tensor,
    request: Request,
    *,
    copied: bool,
) -> Norms:
    tokens = not inputs.is_floating_point()
    batch = Arguments((plain(inputs),), {})
    version = batch.inputs._version
    tracked, edges = batch.tracked(copied=copied)
    try:
        with recorder:
            output = forward.run(tracked.args, {})
    except (RuntimeError, TypeError):
        if tokens and not recorder.lookups:
            check_batch(inputs)  # it wants real numbers
        raise
    if batch.inputs._version != version:
        raise RuntimeError(
            "model changes its inputs in place under torch.no_grad(), where it cannot be stopped; "
            "they are changed now, as by any call of it; let it work on a copy"
        )
    logits = logits_of(output)
    losses = _losses(forward, logits, targets, request)
    sources = edges if request.p is not None else []
    if tokens and request.p is not None:
        name = embedding_name(forward.model, request.embedding)
        sources = [embedded(recorder.lookups, name)]
    if losses.grad_fn is None:
        raise ValueError(
            "model gives logits that do not depend on its weights or its inputs in a "
            "differentiable way; look for .detach(), torch.no_grad() or argmax in its forward pass"
        )
    ends = [edge.node for edge in {*edges, *sources}]
    found = survey([losses.grad_fn], recorder.calls, ends, to_ends=request.p is not None)
    forward.refuse_hidden_weights(found.unknown)
    about = inputs.shape, logits.shape, logits.dtype
    path = path_of(forward.model, about, recorder.calls, found)
    if not LAYOUTS.recall(forward.model, path, recorder.calls):
        below = survey(roots_of(logits), recorder.calls, [edge.node for edge in edges])
        random = forward.drew_random_numbers()
        find_layouts(forward, recorder.calls, below, batch, random=random)
        LAYOUTS.remember(forward.model, path, recorder.calls)
    del output, logits
    unknown = names_of(forward.trainable, found.unknown)
    closed = ClosedForms(recorder.calls, unknown)
    recorder.listener = closed.receive if request.parameters else None
    first = [(call, call.edge) for call in found.first if request.parameters and call.edge]
    wanted = [*sources, *(edge for _, edge in first)]
    got: Sequence[Tensor | None] = ()
    if wanted:
        got = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
    del losses, wanted
    input_norms = _norms(next(iter(got), None), request.p) if request.p is not None else None
    if not request.parameters:
        return Norms(input_norms, None)
    for (call, _), gradient in zip(first, got[len(sources) :], strict=True):
        if gradient is not None:
            closed.receive(call, gradient)
    del got
    rest = [name for name in forward.trainable if name in closed.missing | unknown]
    squares = [closed.squares(), _remaining(forward, rest, inputs, targets, request)]
    given = [s for s in squares if s is not None]
    total = sum(given[1:], given[0]) if given else torch.zeros(len(inputs), device=inputs.device)
    return Norms(input_norms, total.sqrt())


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
    if request.loss_fn is not None:
        _refuse_coupled_losses(request.loss_fn, losses.detach(), logits.detach(), targets)
    if not request.allow_random:
        forward.refuse_randomness()
    return losses


def _refuse_coupled_losses(
    loss_fn: LossFunction, losses: Tensor, logits: Tensor, targets: Tensor
) -> None:
    rows = [len(losses) // 2, len(losses) - 1]
    if len(losses) < 3:
        rows = rows[1:]
    try:
        few = unchecked_losses(loss_fn, logits[rows], targets[rows])
    except (IndexError, RuntimeError, ValueError):
        return  # it knows this batch only, by a weight for each example for instance
    if len(losses) > 1 and not is_close(losses[rows], few.detach()):
        raise ValueError(
            "loss_fn couples the examples of a batch: the losses of two of them are others when "
            "these come without the rest; it must give each example a loss of its own, and not "
            "divide by their number"
        )


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
