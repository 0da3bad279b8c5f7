"""What the functions for gradient norms share: checks before, chunks, checks afterwards."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from memtools.batch import check_batch, check_chunk_size, check_tensor, unchecked_losses
from memtools.gradients.layout import is_close
from memtools.gradients.passes import Norms, Request, norms_of_batch
from memtools.gradients.remainder import remaining_squares
from memtools.guard import Forward, plain, untouched

__all__ = ["measure"]


def measure(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    request: Request,
    *,
    chunk_size: int | None,
    check: bool,
    verify: int,
) -> Norms:
    """Norms of the gradients of all examples, see :func:`memtools.gradient_norms`."""
    check_tensor("targets", targets)
    check_batch(inputs, targets, tokens=True)
    size = check_chunk_size(chunk_size, len(inputs))
    if verify < 0:
        raise ValueError(f"verify must be a number of examples, 0 or more, got {verify}")
    if verify and request.allow_random:
        raise ValueError(
            "verify cannot be had with allow_random=True, since another forward pass draws other "
            "random numbers; switch dropout and noise off with model.eval(), or verify nothing"
        )
    with untouched(model) as forward:
        if request.parameters and not forward.trainable:
            raise ValueError(
                "model has no weight with requires_grad=True, so that there is no gradient to take"
            )
        targets = plain(targets)
        if check:
            _check_all(forward, inputs, targets, request)
        chunks = zip(inputs.split(size), targets.split(size), strict=True)
        found = [norms_of_batch(forward, x, y, request) for x, y in chunks]
        norms = Norms(_join([f.inputs for f in found]), _join([f.parameters for f in found]))
        if verify:
            _verify(forward, inputs, targets, request, norms, min(verify, len(inputs)))
    return norms


def _join(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _check_all(forward: Forward, inputs: Tensor, targets: Tensor, request: Request) -> None:
    """Compare logits and losses of every example in the batch, in another order, and in halves."""
    forward.refuse_coupling(inputs)

    def values(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits = forward(x)
        losses = unchecked_losses(request.loss_fn, logits, y)
        return {"model": logits, "loss_fn": losses}

    with torch.no_grad():
        x, half = plain(inputs), (len(inputs) + 1) // 2
        whole = values(x, targets)
        turned = {k: v.flip(0) for k, v in values(x.flip(0), targets.flip(0)).items()}
        parts = [values(a, b) for a, b in zip(x.split(half), targets.split(half), strict=True)]
        halves = {k: torch.cat([part[k] for part in parts]) for k in whole}
    for how, other in {"in reverse order": turned, "in two halves": halves}.items():
        for who in whole:
            for i, (row, same) in enumerate(zip(whole[who], other[who], strict=True)):
                if not is_close(row, same):
                    raise ValueError(
                        f"{who} couples the examples of a batch: the values of example {i} are "
                        f"others when the batch is given {how}, so that no example has a value of "
                        "its own; normalise each example by itself, switch dropout and noise off, "
                        "and do not average the loss"
                    )


def _verify(
    forward: Forward,
    inputs: Tensor,
    targets: Tensor,
    request: Request,
    norms: Norms,
    count: int,
) -> None:
    """Redo a few examples one at a time, by autograd alone."""
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:count]
    again = [_alone(forward, inputs[i, None], targets[i, None], request) for i in chosen]
    pairs = {
        "input": (norms.inputs, _join([a.inputs for a in again])),
        "parameter": (norms.parameters, _join([a.parameters for a in again])),
    }
    for kind, (fast, slow) in pairs.items():
        if fast is None or slow is None:
            continue
        fast = fast[chosen.to(fast.device)]
        # Half of the digits: batches of other sizes are summed in another order.
        bound = torch.finfo(next(iter(forward.weights.values())).dtype).eps ** 0.5
        wrong = ((fast - slow).abs() > bound * slow.abs()).nonzero().flatten()
        if len(wrong):
            i = int(wrong[0])
            raise RuntimeError(
                f"the {kind} gradient norm of example {int(chosen[i])} is {float(fast[i]):.6g}, "
                f"but {float(slow[i]):.6g} when it is redone alone; please report this model, and "
                "use chunk_size=1 until then"
            )


def _alone(forward: Forward, x: Tensor, y: Tensor, request: Request) -> Norms:
    """An example by itself; its weight gradients by autograd and nothing else."""
    squares = None
    if request.parameters:
        names = list(forward.trainable)
        squares = remaining_squares(forward, names, x, y, request.loss_fn, one_by_one=True)
    inputs = None
    if request.p is not None:
        inputs = norms_of_batch(forward, x, y, replace(request, parameters=False)).inputs
    return Norms(inputs, None if squares is None else squares.sqrt())
