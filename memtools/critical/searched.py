"""The model as a function of the points that are searched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from memtools.batch import check_logits
from memtools.critical.rounding import Rounding, measured_rounding
from memtools.gradients.passes import differentiate
from memtools.guard import Forward, leaf

__all__ = ["Searched"]

LARGEST_BATCH = 1024
CPU_ACTIVATIONS = 2**26
"""Bytes of activations that a pass keeps on a CPU: with more, it waits for memory."""

SUM_TO_ONE = 1e-3
"""Outputs that are not negative and sum to 1 but for this are probabilities."""

GPU_SHARE = 4
"""On a GPU a pass may keep one part in so many of the free memory."""


class Searched:
    """Logits and their gradients at points of the space that is searched, counted.

    The space is that of the inputs, or of what a module of the model makes of them: for integer
    inputs their embeddings.

    Attributes:
        forward: The model.
        centres: The examples in that space, ``(n, ...)``.
        evaluations: Forward and backward passes of single examples so far.
    """

    def __init__(self, forward: Forward, inputs: Tensor, layer: nn.Module | None) -> None:
        self.forward = forward
        self._inputs = inputs
        self._layer = layer
        self.evaluations = 0
        self.centres = inputs if layer is None else self._outputs_of_layer()
        self._has_softmax = self._gives_probabilities()

    def logits(self, points: Tensor, rows: Tensor) -> Tensor:
        """Logits at points of the examples with these numbers, without gradients.

        Raises:
            ValueError: If they are not finite or of another shape.
        """
        with torch.no_grad():
            return self._logits(points, rows)

    def gradients(
        self, points: Tensor, rows: Tensor, weights: Callable[[Tensor], Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the gradients of a weighted sum of them.

        Args:
            points: Where.
            rows: Numbers of the examples.
            weights: Makes of the logits ``(n, C)`` their weights in the sum, ``(n, C)``, or
                ``None`` if no gradient is needed any more.

        Returns:
            Logits ``(n, C)`` and gradients of the shape of ``points``, if they were needed.

        Raises:
            ValueError: If logits are not finite or of another shape.
        """

        def sums(logits: Tensor) -> list[Tensor]:
            found = weights(logits)
            return [] if found is None else [found]

        logits, gradients = self.several_gradients(points, rows, sums)
        return logits, gradients[0] if gradients else None

    def several_gradients(
        self, points: Tensor, rows: Tensor, weights: Callable[[Tensor], list[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`gradients`, for several sums by one forward pass."""
        with torch.enable_grad():
            x = leaf(points)
            logits = self._logits(x, rows)
            sums = weights(logits.detach())
            gradients = []
            for k, weight in enumerate(sums):
                value = (logits * weight).sum()
                gradients.append(differentiate(value, x, keep_graph=k + 1 < len(sums)))
            self.evaluations += len(points) * len(sums)
        return logits.detach(), gradients

    def batch_size(self) -> int:
        """How many examples fit into a pass, by what a pass of two keeps for its backward pass."""
        kept = 0
        weights = {w.untyped_storage().data_ptr() for w in self.forward.weights.values()}

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            if tensor.untyped_storage().data_ptr() not in weights:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        rows = torch.arange(min(2, len(self.centres)), device=self.centres.device)
        with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
            self.outputs(leaf(self.centres[rows]), rows)
        of_one = max(1, kept // len(rows))
        room = CPU_ACTIVATIONS
        if self.centres.is_cuda:
            room = torch.cuda.mem_get_info(self.centres.device)[0] // GPU_SHARE
        return max(1, min(LARGEST_BATCH, room // of_one))

    def refuse_coupling(self) -> None:
        """Raise if the logits of one of two examples depend on the other.

        Raises:
            ValueError: If they do.
        """
        rows = torch.arange(min(2, len(self.centres)), device=self.centres.device)
        self.forward.refuse_coupling(self.centres[:2], lambda x: self.outputs(x, rows))
        self.evaluations += 4 if len(rows) == 2 else 0  # a backward pass of two for each of two

    def rounding(self, rows: Tensor) -> Rounding:
        """What rounding can explain, measured on some examples."""
        return measured_rounding(lambda: self._unchecked(self.centres[rows], rows))

    def _logits(self, points: Tensor, rows: Tensor) -> Tensor:
        logits = self._unchecked(points, rows)
        check_logits(logits, len(points), rows)
        return logits

    def outputs(self, points: Tensor, rows: Tensor) -> Tensor:
        """What the model returns, unchecked."""
        self.evaluations += len(points)
        if self._layer is None:
            return self.forward(points)
        with _replaced(self._layer, lambda _: points.clone()):
            return self.forward(self._inputs[rows])

    def _unchecked(self, points: Tensor, rows: Tensor) -> Tensor:
        outputs = self.outputs(points, rows)
        if not self._has_softmax:
            return outputs
        # Slopes of probabilities vanish where the model is sure; those of logarithms do not.
        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()

    def _gives_probabilities(self) -> bool:
        rows = torch.arange(min(2, len(self.centres)), device=self.centres.device)
        with torch.no_grad():
            output = self.outputs(self.centres[rows], rows)
        if output.ndim != 2 or not output.is_floating_point():
            return False  # an error of its own follows
        return bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < SUM_TO_ONE).all())

    def _outputs_of_layer(self) -> Tensor:
        assert self._layer is not None
        self.evaluations += len(self._inputs)
        made: list[Tensor] = []
        with _replaced(self._layer, lambda output: made.append(output)), torch.no_grad():
            for chunk in self._inputs.split(LARGEST_BATCH):
                self.forward(chunk)
        calls = -(-len(self._inputs) // LARGEST_BATCH)
        whole = len(made) == calls and all(isinstance(part, Tensor) for part in made)
        if not whole or sum(len(part) for part in made) != len(self._inputs):
            raise ValueError(
                f"embedding must be a module that is called once in a forward pass and returns a "
                f"tensor with one row per example, got {type(self._layer).__name__} with "
                f"{len(made)} calls in {calls} passes; name the module that looks the tokens up"
            )
        return torch.cat(made)


@contextmanager
def _replaced(layer: nn.Module, output: Callable[[Any], Tensor | None]) -> Iterator[None]:
    """Put something else in place of what a module returns, for a block."""
    # First of all hooks, as if the module itself had returned it.
    handle = layer.register_forward_hook(lambda _, __, made: output(made), prepend=True)
    try:
        yield
    finally:
        handle.remove()
