"""What a model is called with, and smaller batches made of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map

from memtools.guard import Forward

__all__ = ["Alias", "Arguments", "roots_of", "tensors_of"]


class Arguments:
    """The arguments of a call of a model.

    Args:
        args: The arguments.
        kwargs: The keyword arguments.
        alone: Whether no other tensor than the first holds the examples, however long it is.

    Attributes:
        inputs: The first tensor among them, which holds the examples.
        n: Number of examples.

    Raises:
        ValueError: If there is no tensor among them.
    """

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, alone: bool = False
    ) -> None:
        self.args, self.kwargs, self.alone = args, kwargs, alone
        found = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim)
        inputs = next(found, None)
        if inputs is None:
            raise ValueError(
                "watch needs the inputs as a tensor of shape (n, ...) among the arguments of the "
                "model, and found none"
            )
        self.inputs = inputs
        self.n = len(inputs)

    @property
    def is_plain(self) -> bool:
        """Whether the inputs are all there is."""
        return len(self.args) == 1 and self.args[0] is self.inputs and not self.kwargs

    def with_inputs(self, inputs: Tensor) -> "Arguments":
        """The same with other inputs."""
        old = self.inputs
        args, kwargs = tree_map(lambda t: inputs if t is old else t, (self.args, self.kwargs))
        return Arguments(args, kwargs, alone=self.alone)

    def some(self, rows: Sequence[int]) -> "Arguments":
        """Those of a few examples."""

        def pick(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.n
            is_batch = value is self.inputs or (is_batch and not self.alone)
            return value.detach()[list(rows)] if is_batch else value

        args, kwargs = tree_map(pick, (self.args, self.kwargs))
        return Arguments(args, kwargs, alone=self.alone)

    def run(self, forward: Forward, rows: Sequence[int]) -> Any:
        """What the model returns for a few examples."""
        some = self.some(rows)
        return forward.run(some.args, some.kwargs)

    def samples(self) -> "Arguments":
        """Three examples that differ, and are like those of the batch."""
        some = self.some([self.n // 2, self.n - 1, 0])
        x = some.inputs
        if any(torch.equal(x[i], x[j]) for i, j in ((0, 1), (0, 2), (1, 2))):
            x = _disturbed(x)
        return some.with_inputs(x)

    def tracked(self, *, copied: bool = True) -> tuple["Arguments", list[GradientEdge]]:
        """The same with gradients, and where that of the inputs arrives, if they can have one.

        Args:
            copied: Whether the inputs are a copy, on which a model may work in place. On what is
                no copy autograd refuses that, in an error with the word ``AliasBackward``.
        """
        x = self.inputs.detach()
        if not x.is_floating_point():
            return self.with_inputs(x.clone()), []
        x = x.requires_grad_().clone() if copied else Alias.apply(x.requires_grad_())
        return self.with_inputs(x), [get_gradient_edge(x)]


class Alias(torch.autograd.Function):
    """The identity, without a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same values in the same place."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient itself."""
        return gradients[0]


def _disturbed(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if not x.is_floating_point():
        order = torch.randperm(x.numel(), generator=generator).to(x.device)
        return x.flatten()[order].view(x.shape)
    noise = torch.randn(x.shape, generator=generator).to(x)
    scale = x.std()
    return x + noise * (scale if bool(scale > 0) else 1.0)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in what a model returned: a tensor, a nest of them, or a record with some."""
    found = []
    for leaf in tree_leaves(output):
        values = [leaf] if isinstance(leaf, Tensor) else getattr(leaf, "__dict__", {}).values()
        found += [value for value in values if isinstance(value, Tensor)]
    return found


def roots_of(output: Any) -> list[Node]:
    """The nodes of autograd's graph that it begins with."""
    return [t.grad_fn for t in tensors_of(output) if t.grad_fn is not None]
