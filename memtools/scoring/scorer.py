"""Scores of the examples of one batch."""

from typing import Any

import torch
from memtools_kernels import logit_scores
from numpy.typing import NDArray
from torch import Tensor, nn

from memtools.batch import check_batch, check_logits, check_targets
from memtools.critical import find_critical
from memtools.gradients import gradient_norms, input_gradient_norms, parameter_gradient_norms
from memtools.guard import Forward, untouched, unwrap
from memtools.scoring.wanted import CRITICAL, GRADIENTS, SCORES, Wanted

__all__ = ["Scorer"]

Columns = dict[str, Tensor]


class Scorer:
    """A model in eval mode as a function of a batch, that gives the scores of its examples.

    The model is neither moved nor changed. An example whose logits are NaN or infinite does not
    keep the others from their scores: it has NaN for each, prediction -1, and is not correct.

    Args:
        model: Maps inputs to logits of shape ``(n, C)``.
        wanted: The scores.

    Attributes:
        device: Where the model is.
        dtype: Its floating-point type, in which inputs of floating point are given to it.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If gradients of the weights are wanted and all are frozen.

    Example:
        >>> import torch
        >>> from memtools.scoring import Scorer, Wanted
        >>> scorer = Scorer(torch.nn.Linear(3, 2), Wanted.of(["loss", "correct"]))
        >>> scores = scorer(torch.zeros(5, 3), torch.zeros(5).long())
        >>> scores["loss"].shape, scores["correct"].dtype
        ((5,), dtype('bool'))
    """

    def __init__(self, model: nn.Module, wanted: Wanted) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = unwrap(model)
        self.wanted = wanted
        weights = list(self.model.parameters())
        if GRADIENTS[1] in wanted.scores and not any(w.requires_grad for w in weights):
            raise ValueError(
                "model has no weight with requires_grad=True, so that there is no "
                f"{GRADIENTS[1]}; call model.requires_grad_(), or leave it out of scores"
            )
        held = [*weights, *self.model.buffers()]
        self.device = held[0].device if held else torch.device("cpu")
        floating = [w.dtype for w in held if w.is_floating_point()]
        self.dtype = floating[0] if floating else torch.get_default_dtype()
        self._is_first = True

    def __call__(self, inputs: Tensor, targets: Tensor) -> dict[str, NDArray[Any]]:
        """Score a batch.

        Args:
            inputs: Shape ``(n, ...)``, on any device.
            targets: Class numbers, ``(n,)``.

        Returns:
            Each wanted score, ``(n,)``: ``prediction`` int64, ``correct`` bool, ``is_critical``
            float32 of 0, 1, and NaN for an example that could not be searched; the others float32,
            float64 for a float64 model.

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If targets are no classes, or the model is none whose examples have scores
                of their own.
        """
        check_batch(inputs, targets, tokens=True)
        dtype = self.dtype if inputs.is_floating_point() else None
        x, y = inputs.to(self.device, dtype, non_blocking=True), targets.to(self.device)
        with untouched(self.model, evaluating=True) as forward:
            if self._is_first:
                forward.refuse_coupling(x)
                self._is_first = False
            found = self._halved(forward, x, y.long() if _is_whole(y) else y)
        return {name: found[name].cpu().numpy() for name in self.wanted.scores}

    def nothing(self) -> dict[str, NDArray[Any]]:
        """The columns of a batch without examples, ``(0,)`` each."""
        columns = _nothing(torch.empty(0), self.dtype)
        return {name: columns[name][:0].numpy() for name in self.wanted.scores}

    def _halved(self, forward: Forward, x: Tensor, y: Tensor) -> Columns:
        """All columns; where an example spoils the batch, those of both halves."""
        try:
            columns: Columns = {}
            for part in (self._of_logits, self._of_gradients, self._of_search):
                columns |= part(forward, x, y)
            return columns
        except ValueError as error:
            if not _is_not_finite(error):
                raise
        if len(x) == 1:
            return self._alone(forward, x, y)
        halves = zip(x.tensor_split(2), y.tensor_split(2), strict=True)
        first, second = (self._halved(forward, *half) for half in halves)
        return {name: torch.cat([first[name], second[name]]) for name in self.wanted.scores}

    def _alone(self, forward: Forward, x: Tensor, y: Tensor) -> Columns:
        """What can be had of a single example that spoils its batch."""
        columns = _nothing(x, self.dtype)
        for part in (self._of_logits, self._of_gradients, self._of_search):
            try:
                columns |= part(forward, x, y)
            except ValueError as error:
                if not _is_not_finite(error):
                    raise
                if part == self._of_logits:
                    break
        return columns

    def _of_logits(self, forward: Forward, x: Tensor, y: Tensor) -> Columns:
        with torch.no_grad():
            logits = forward(x)
        forward.refuse_randomness()
        if isinstance(logits, Tensor) and logits.ndim == 2:
            check_targets(y, logits.shape[1])  # before NaN can hide that they are out of range
        check_logits(logits, len(x))
        found = logit_scores(logits, y)
        return {
            "prediction": found.prediction,
            "loss": found.loss,
            "confidence": found.probability,
            "el2n": found.el2n,
            "margin": found.margin,
            "correct": found.correct,
            "entropy": found.entropy,
        }

    def _of_gradients(self, forward: Forward, x: Tensor, y: Tensor) -> Columns:
        of_inputs, of_weights = (name in self.wanted.scores for name in GRADIENTS)
        embedding = self.wanted.embedding
        if of_inputs and of_weights:
            both = gradient_norms(self.model, x, y, embedding=embedding)
            return dict(zip(GRADIENTS, both, strict=True))
        if of_inputs:
            return {GRADIENTS[0]: input_gradient_norms(self.model, x, y, embedding=embedding)}
        if of_weights:
            return {GRADIENTS[1]: parameter_gradient_norms(self.model, x, y)}
        return {}

    def _of_search(self, forward: Forward, x: Tensor, y: Tensor) -> Columns:
        wanted = self.wanted
        if wanted.radius is None:
            return {}
        low_and_high = None
        if wanted.bounds is not None:
            low, high = (torch.tensor(b, dtype=torch.float64) for b in wanted.bounds)
            low_and_high = low, high
        found = find_critical(
            self.model,
            x,
            radius=torch.tensor(wanted.radius, dtype=torch.float64),
            bounds=low_and_high,
            method=wanted.method,
            embedding=wanted.embedding,
            # Its own choice depends on how much memory happens to be free.
            batch_size=len(x),
        )
        return {CRITICAL: found.is_critical.float()}


def _nothing(x: Tensor, dtype: torch.dtype) -> Columns:
    """The columns of an example of which nothing is known."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    columns = {name: x.new_full((1,), torch.nan, dtype=wide) for name in SCORES}
    columns["prediction"] = x.new_full((1,), -1, dtype=torch.int64)
    columns["correct"] = x.new_zeros((1,), dtype=torch.bool)
    columns[CRITICAL] = columns[CRITICAL].float()
    return columns


def _is_whole(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)


def _is_not_finite(error: ValueError) -> bool:
    # The words of `memtools.batch.check_finite`, through which every function refuses such logits.
    return "NaN or infinite" in str(error)
