"""How the loss term of each class depends on the inputs of each class."""

import torch
from memtools_kernels import row_norms
from torch import Tensor, nn
from torch.nn import functional as F

from memtools.batch import check_batch, check_logits, check_targets
from memtools.gradients.passes import differentiate
from memtools.guard import leaf, untouched

__all__ = ["class_sensitivity"]


def class_sensitivity(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, num_classes: int | None = None
) -> Tensor:
    r"""Mean input gradient of each class's loss term over the examples of each class.

    .. math:: S_{ij} = \operatorname{mean}_{x : y(x) = j}
              \lVert \partial\, (-\log p_i(x)) / \partial x \rVert_1

    at the present weights: the instantaneous companion of the per-class loss sensitivity of Arpit
    et al. (2017), section 3.2. Row i is the loss term of class i, column j the examples of class
    j. Costs one forward and C backward passes; extra memory: the activations of the batch.

    Args:
        model: Maps inputs to logits of shape ``(n, C)``. Examples must not influence each other.
        inputs: Batch of shape ``(n, ...)``, floating point.
        targets: Class numbers of shape ``(n,)``.
        num_classes: Size of the matrix; ``None`` is the number of logits. It must match them.

    Returns:
        Matrix of shape ``(C, C)``, float32 (float64 for float64 inputs); the column of a class
        without examples is NaN.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: As for :func:`memtools.input_gradient_norms`, or if ``num_classes`` is not the
            number of logits.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> targets = torch.tensor([0, 1, 1, 0, 1])
        >>> memtools.class_sensitivity(model, torch.randn(5, 3), targets).shape
        torch.Size([2, 2])
    """
    check_batch(inputs, targets)
    with untouched(model) as forward:
        forward.refuse_coupling(inputs)
        x = leaf(inputs)
        logits = forward(x)
        forward.refuse_randomness()
        check_logits(logits, len(inputs))
        classes = logits.shape[1]
        if num_classes not in (None, classes):
            raise ValueError(
                f"num_classes must be the number of logits, {classes}, got {num_classes}; "
                "leave it out"
            )
        check_targets(targets, classes)
        terms = -F.log_softmax(logits, dim=1).sum(0)
        norms = torch.stack(
            [row_norms(differentiate(term, x, keep_graph=True), 1) for term in terms]
        )
    # In float64, since neither autocast nor TF32 rounds that: these are sums, and no layer.
    wide = norms if norms.device.type == "mps" else norms.double()
    members = F.one_hot(targets.long(), classes).to(wide)
    with torch.autocast(norms.device.type, enabled=False):
        return (wide @ members / members.sum(0)).to(norms.dtype)
