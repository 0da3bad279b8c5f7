"""Scores of examples from their logits or probabilities."""

# Where a peer is not installed, a type checker cannot find it either.
# pyright: reportMissingImports=false

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from memtools_kernels import logit_scores
from torch import Tensor
from torch.nn import functional as F

from bench.cases.operation import Operation, Run, Sizes, Way, compiled
from memtools import scores

CLASSES = 100


class Batch(NamedTuple):
    logits: Tensor
    targets: Tensor


Function = Callable[[Tensor, Tensor], Tensor]
"""Of logits and targets."""


def batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, CLASSES, generator=generator)
    return Batch(logits, torch.randint(CLASSES, (size,), generator=generator))


def call(function: Function) -> Way:
    return lambda batch: partial(function, *batch)


def call_compiled(function: Function) -> Way:
    return lambda batch: partial(compiled(function), *batch)


def vmapped(function: Function) -> Way:
    """The function for a batch, applied to single examples by ``vmap``."""
    each = torch.func.vmap(lambda x, y: function(x.unsqueeze(0), y.unsqueeze(0))[..., 0])
    return lambda batch: lambda: each(*batch).movedim(0, -1)


def looped(function: Function) -> Way:
    """The function for a batch, applied to one example after the other."""

    def prepare(batch: Batch) -> Run:
        def run() -> Tensor:
            pairs = zip(batch.logits.split(1), batch.targets.split(1), strict=True)
            return torch.cat([function(x, y) for x, y in pairs], -1)

        return run

    return prepare


def plainly(eager: Function, ours: Function) -> dict[str, Way]:
    """What every operation has."""
    return {
        "memtools": call(ours),
        "eager": call(eager),
        "naive loop": looped(eager),
        "vmap": vmapped(eager),
        "torch.compile": call_compiled(eager),
    }


def in_float64(function: Function) -> Callable[[Batch], Tensor]:
    return lambda batch: function(batch.logits.double(), batch.targets)


# Loss, EL2N and margin


def three(logits: Tensor, targets: Tensor) -> Tensor:
    loss = F.cross_entropy(logits, targets, reduction="none")
    error = logits.softmax(1) - F.one_hot(targets, logits.shape[1])
    return torch.stack([loss, error.norm(dim=1), margin(logits, targets)])


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], float("-inf"))
    return own[:, 0] - others.amax(1)


def from_one_call(logits: Tensor, targets: Tensor) -> Tensor:
    found = logit_scores(logits, targets)
    return torch.stack([found.loss, found.el2n, found.margin])


def from_three_calls(logits: Tensor, targets: Tensor) -> Tensor:
    each = (scores.loss, scores.el2n, scores.margin)
    return torch.stack([score(logits, targets) for score in each])


def from_definitions(batch: Batch) -> Tensor:
    """By powers of e, in float64."""
    powers = batch.logits.double().exp()
    chances = powers / powers.sum(1, keepdim=True)
    truth = torch.zeros_like(chances)
    truth[range(len(truth)), batch.targets] = 1
    loss = -(chances * truth).sum(1).log()
    el2n = (chances - truth).square().sum(1).sqrt()
    others = batch.logits.double().masked_fill(truth.bool(), -torch.inf).max(1).values
    return torch.stack([loss, el2n, (batch.logits * truth).sum(1) - others])


# Whether the label is predicted


def is_right(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets).float()


def accuracy_of_each(batch: Batch) -> Run:
    """torchmetrics' accuracy, sample by sample."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return lambda: multiclass_accuracy(
        batch.logits[..., None],
        batch.targets[:, None],
        num_classes=CLASSES,
        average="micro",
        multidim_average="samplewise",
    )


# Quality of the label, as cleanlab has it


def self_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


def normalized_margin(logits: Tensor, targets: Tensor) -> Tensor:
    return (margin(logits.softmax(1), targets) + 1) / 2


def our_normalized_margin(logits: Tensor, targets: Tensor) -> Tensor:
    # The margin of probabilities is that of logits which are probabilities.
    return (scores.margin(logits.softmax(1), targets) + 1) / 2


def quality(method: str) -> Way:
    """cleanlab's score of every label."""

    def prepare(batch: Batch) -> Run:
        from cleanlab.rank import get_label_quality_scores

        labels = batch.targets.numpy()

        def run() -> Tensor:
            chances = batch.logits.softmax(1).numpy()
            found = get_label_quality_scores(
                labels, chances, method=method, adjust_pred_probs=False
            )
            return torch.from_numpy(found)

        return run

    return prepare


WHAT = f"4,096 examples, {CLASSES} classes"
SIZES = Sizes(64, 4096)
OPERATIONS = {
    "loss, EL2N and margin": Operation(
        WHAT,
        batch,
        SIZES,
        from_definitions,
        1e-5,
        plainly(three, from_one_call) | {"memtools, three calls": call(from_three_calls)},
    ),
    "correct or not": Operation(
        WHAT,
        batch,
        SIZES,
        in_float64(lambda logits, targets: (logits.argmax(1) == targets).double()),
        0,
        plainly(is_right, lambda logits, targets: scores.correctness(logits, targets).float())
        | {"torchmetrics": accuracy_of_each},
    ),
    "label quality, self-confidence": Operation(
        WHAT,
        batch,
        SIZES,
        in_float64(self_confidence),
        1e-5,
        plainly(self_confidence, scores.confidence) | {"cleanlab": quality("self_confidence")},
    ),
    "label quality, normalised margin": Operation(
        WHAT,
        batch,
        SIZES,
        in_float64(normalized_margin),
        1e-5,
        plainly(normalized_margin, our_normalized_margin)
        | {"cleanlab": quality("normalized_margin")},
    ),
}
