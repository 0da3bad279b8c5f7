"""Gradient norms of single examples, read off the user's own backward pass."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_ad
from memtools_kernels import row_norms
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils.hooks import RemovableHandle

from memtools.gradients.arguments import tensors_of
from memtools.gradients.watched import Batch, retraced
from memtools.guard import is_measuring, refuse_batch_norm, unwrap

__all__ = ["Watch", "watch"]


def watch(
    model: nn.Module,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    loss_scale: float | Callable[[], float] = 1.0,
    embedding: str | nn.Module | None = None,
) -> "Watch":
    r"""Read the gradient norms of every example off the backward pass of a training step.

    The numbers of :func:`memtools.input_gradient_norms` and
    :func:`memtools.parameter_gradient_norms` for the batch that is trained on, with its dropout
    masks, for a fraction of a backward pass more. The training is the same to the last bit.

    .. code-block:: python

        with memtools.watch(model) as watched:
            for inputs, targets in loader:
                loss = cross_entropy(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()
                norms = watched.parameter_gradient_norms()
                optimizer.step()

    They belong to the last ``backward()``. If it went through more than one forward pass of the
    model, they come in the order of these; with gradient accumulation read them after each
    ``backward()``. Forward passes without gradients, as in validation, are left alone. Under DDP
    each process has the norms of its own examples. A weight that the model uses in a way for which
    there is no closed form (a recurrent layer, a custom function) costs more passes.

    What counts is how the loss depends on the weights *through what the model returns*; a weight
    that the loss uses in another way as well is only seen as far as the model goes. A mean is taken
    to be one over the examples of each forward pass. The model sees a copy of the inputs, which
    requires a gradient: in it, ``.numpy()`` needs ``.detach()``. What cannot be done is raised on
    reading, and does not stop the training.

    Extra memory: that of :func:`memtools.parameter_gradient_norms`, one input gradient, and the
    inputs of the layers with weights until the backward pass has been there.

    Args:
        model: The model that is trained; may be wrapped by ``DistributedDataParallel``.
        reduction: How the loss joins the examples: ``"mean"`` for their mean, ``"sum"`` for the
            sum. A mean makes every gradient smaller by the number of examples, which is undone.
        loss_scale: What the loss was multiplied by before ``backward()``: 0.5 for ``loss / 2``;
            for a ``GradScaler`` its method ``scaler.get_scale``.
        embedding: For integer inputs, the embedding that looks them up, or its name; ``None``
            finds it if there is only one.

    Returns:
        A context manager that gives itself; its methods give the norms.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``.
        ValueError: If ``reduction`` is another word, or the model is compiled; in a forward pass,
            if a BatchNorm is in train mode; on reading, if examples are coupled in another way.

    Example:
        >>> import torch, memtools
        >>> model = torch.nn.Linear(3, 2)
        >>> with memtools.watch(model) as watched:
        ...     logits = model(torch.eye(3))
        ...     torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1])).backward()
        ...     watched.parameter_gradient_norms().shape
        torch.Size([3])
    """
    return Watch(model, reduction, loss_scale, embedding)


class Watch:
    """What :func:`memtools.watch` returns."""

    _is_asleep = False

    def __init__(
        self,
        model: nn.Module,
        reduction: str,
        loss_scale: float | Callable[[], float],
        embedding: str | nn.Module | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
        if any(_is_compiled(module) for module in model.modules()):
            raise ValueError(
                "model is compiled, and its operators cannot be seen; watch it before "
                "torch.compile, or call memtools.gradient_norms, which runs it uncompiled"
            )
        self._model, self._embedding = unwrap(model), embedding
        self._reduction, self._loss_scale = reduction, loss_scale
        self._handles: list[RemovableHandle] = []
        self._open: Batch | None = None
        self._task = -1
        self._batches: list[Batch] = []

    def __enter__(self) -> "Watch":
        """Begin to watch."""
        if self._handles:
            raise RuntimeError("this watch is entered already; make another by memtools.watch")
        before = self._model.register_forward_pre_hook(self.before, with_kwargs=True)
        after = self._model.register_forward_hook(self.after, with_kwargs=True, always_call=True)
        self._handles = [before, after]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take all hooks off the model; the last norms can still be read."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._open is not None:  # a forward pass was stopped from the keyboard
            self._open.close()
            self._open.forget()
            self._open = None

    def __reduce__(self) -> tuple[type["Asleep"], tuple[()]]:
        """In a copy of the model, and in a saved one, nothing is watched."""
        return Asleep, ()

    def input_gradient_norms(self, p: float = 1) -> Tensor:
        """Norms of the gradients with respect to the inputs, shape ``(n,)``.

        Args:
            p: 1, 2 or ``math.inf``.

        Raises:
            RuntimeError: If there was no backward pass, or it did not reach the inputs.
        """
        return self._join([row_norms(b.input_gradient(), p) * b.factor for b in self._last()])

    def parameter_gradient_norms(self) -> Tensor:
        """Euclidean norms of the gradients with respect to the weights, shape ``(n,)``.

        Raises:
            RuntimeError: If there was no backward pass.
            ValueError: If a weight has no closed form and cannot be done in another way.
        """
        return self._join([b.squares().sqrt() * b.factor for b in self._last()])

    def _last(self) -> list[Batch]:
        if not self._batches:
            raise RuntimeError(
                "no backward pass was seen yet: call loss.backward() first, inside the with block, "
                "on a loss of what the model returned there"
            )
        return self._batches

    @staticmethod
    def _join(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before a forward pass: the arguments with a copy of the inputs."""
        if self._is_asleep or not torch.is_grad_enabled() or is_measuring():
            return None
        if self._open is not None or _is_transformed():
            return None
        if torch._C._current_graph_task_id() != -1:
            return retraced(args, kwargs)  # a checkpoint's second forward pass
        if torch.compiler.is_compiling():
            raise RuntimeError("watch cannot see inside torch.compile; call the model outside")
        refuse_batch_norm(self._model)
        self._batches = []  # and the memory that they hold
        self._open = Batch(self._model, args, kwargs, self._embedding)
        return self._open.args, self._open.kwargs

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """The hook after a forward pass, also after one that failed."""
        batch = self._open
        if batch is None or is_measuring():
            return
        self._open = None
        batch.close()
        if any(t.requires_grad for t in tensors_of(output)):
            batch.listen(output, self._arrive)
        else:
            batch.forget()  # or an exception has come out of the forward pass

    def _arrive(self, batch: Batch) -> None:
        """A backward pass has come to a batch."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._batches = task, []
        if batch not in self._batches:
            scale = self._loss_scale() if callable(self._loss_scale) else self._loss_scale
            batch.factor = (batch.n if self._reduction == "mean" else 1) / scale
            batch.reset()
            self._batches.append(batch)
            self._batches.sort(key=lambda b: b.number)


class Asleep:
    """What is left of a watch in a copy of a model; methods of the original may be bound to it."""

    _is_asleep, _open = True, None

    def before(self, *_: Any) -> None:
        """Nothing."""

    def after(self, *_: Any) -> None:
        """Nothing."""


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _is_transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is under way."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0
