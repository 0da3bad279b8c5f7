"""The one place that makes a metric call leave no trace.

Every call of a user's model goes through :func:`untouched`. What it keeps as it was, also when the
call raises: weights, ``.grad``, ``requires_grad``, buffers (BatchNorm statistics among them), the
train/eval flag of every submodule and what its other attributes refer to, the global random state
of torch on the CPU and on the model's devices, of NumPy and of Python, gradient and inference mode,
autocast. What it cannot take back: a forward pass, or a user's hook in it, that adds to a list of
its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from memtools.seeds import RandomState

__all__ = [
    "CoupledExamplesError",
    "Forward",
    "is_measuring",
    "leaf",
    "plain",
    "refuse_batch_norm",
    "untouched",
    "unwrap",
]


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module under ``torch.compile`` and the wrappers for data parallelism.

    A metric must not call the wrappers: DDP waits for the other ranks, and a compiled module would
    recompile for each new mode.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


class Forward:
    """The model as a function of its inputs, over copies of its buffers.

    Every call starts from the same buffers, so that a result does not depend on the calls before.

    Attributes:
        model: The unwrapped module.
        weights: All weights by name: the model's own, or copies where it writes to them. A tied
            weight appears once.
        trainable: Those with ``requires_grad``.
        buffers: Detached aliases by name; a forward pass writes into copies of them.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        random_state: RandomState,
    ) -> None:
        self.model = model
        self._random_state = random_state
        self._own = own
        copies = {name: leaf(p, p.requires_grad) for name, p in own.items() if p.is_inference()}
        # An embedding with max_norm writes to its own weight when it is called.
        written = {
            id(m.weight) for m in model.modules() if getattr(m, "max_norm", None) is not None
        }
        for name, p in own.items():
            if id(p) in written:
                copies[name] = leaf(p.detach().clone(), p.requires_grad)
        self._copies = copies
        self.weights: dict[str, Tensor] = {**own, **copies}
        self.trainable = {name: w for name, w in self.weights.items() if w.requires_grad}
        self.buffers = {name: b.detach() for name, b in buffers.items()}

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name, detached."""
        return {name: plain(weight) for name, weight in self.weights.items()}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of shape ``(n, C)``, through which no gradient reaches the weights."""
        return self.with_parameters(self.parameters, inputs)

    def with_weights(self, inputs: Tensor) -> Tensor:
        """Logits through which gradients reach ``trainable``."""
        return self.with_parameters(self._copies, inputs)

    def with_parameters(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Logits with some parameters in place of the model's own."""
        # The copy lets a model work in place on its input: a leaf that requires a gradient, or
        # the user's own tensor, must not be written to.
        return logits_of(self._call(parameters, (inputs.clone(),), {}))

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Whatever the model returns for these arguments, under its weights."""
        return self._call(self._copies, args, kwargs)

    def _call(
        self, parameters: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not parameters and not self.buffers:
            return self.model(*args, **kwargs)
        buffers = {name: b.clone() for name, b in self.buffers.items()}
        return functional_call(self.model, (dict(parameters), buffers), args, kwargs)

    def refuse_hidden_weights(self, leaves: Iterable[Tensor]) -> None:
        """Raise if the model still uses a weight of its own for which a copy was put.

        Args:
            leaves: Leaves of autograd's that the loss depends on.

        Raises:
            ValueError: If one of them is such a weight.
        """
        replaced = {id(self._own[name]): name for name in self._copies}
        for variable in leaves:
            if id(variable) in replaced:
                raise ValueError(
                    f"model holds its weight {replaced[id(variable)]!r} in a second place, under "
                    "no name, and writes to it or was made in inference mode; register it there "
                    "as a parameter, or make a copy of the model without max_norm"
                )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every submodule in eval mode for the time of the block."""
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            _switch_to_eval(self.model)
            yield
        finally:
            for module, training in modes:
                module.training = training

    def drew_random_numbers(self) -> bool:
        """Whether a forward pass so far has (dropout, noise, random depth)."""
        return not self._random_state.is_present()

    def refuse_randomness(self) -> None:
        """Raise if a forward pass so far has drawn random numbers.

        Raises:
            ValueError: If it has.
        """
        if self.drew_random_numbers():
            active = [n for n, m in self.model.named_modules() if _is_active_dropout(m)]
            where = f" (active: {', '.join(active)})" if active else ""
            raise ValueError(
                f"model drew random numbers in its forward pass{where}, so that the result would "
                "be one random draw; switch dropout and noise off with model.eval() first"
            )

    def refuse_coupling(
        self, inputs: Tensor, call: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Raise if the logits of one of two examples depend on the input of the other.

        Args:
            inputs: Two examples are enough.
            call: What gives their logits, if it is not the model itself.

        Raises:
            ValueError: If they do.
        """
        if len(inputs) < 2 or not inputs.is_floating_point():
            return
        x = leaf(inputs[:2])
        with torch.enable_grad():
            try:
                logits = (call or self.with_weights)(x)
            except NoLogitsError:
                return  # it returns something else, which a watched model may do
            if logits.ndim == 0 or len(logits) != 2 or not logits.requires_grad:
                return  # the caller has an error of its own for these
            rows = logits.flatten(1) if logits.ndim > 1 else logits[:, None]
            # Not the plain sum, which is constant for a model that ends in a softmax.
            values = (rows * torch.arange(1, rows.shape[1] + 1).to(rows)).sum(1).unbind()
        for value, own, other in ((values[0], 0, 1), (values[1], 1, 0)):
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
            if gradient is None:
                return
            size = gradient.abs().float().reshape(2, -1).sum(1)
            # Not above zero: a kernel may leave rounding errors in a neighbour's row.
            if bool(size[other] > torch.finfo(gradient.dtype).eps * size[own]):
                raise CoupledExamplesError(
                    "model couples the examples of a batch: the logits of one example depend on "
                    "the input of another, so that no example has a value of its own; normalise "
                    "each example by itself, and give attention and recurrent layers "
                    "batch_first=True"
                )


_MEASURING = ContextVar("measuring", default=False)


def is_measuring() -> bool:
    """Whether the model is being called by a metric, and not by the user."""
    return _MEASURING.get()


@contextmanager
def untouched(model: nn.Module, *, evaluating: bool = False) -> Iterator[Forward]:
    """Call a model with gradients on, and leave no trace in it or in the global state.

    Args:
        model: Any module, also compiled, wrapped for data parallelism, hooked or partly frozen.
        evaluating: Whether to switch every submodule to eval mode for the time of the block.

    Yields:
        The model as a function, see :class:`Forward`.

    Raises:
        TypeError: If ``model`` is no ``nn.Module``.
        ValueError: If examples of a batch are coupled, by a BatchNorm that uses batch statistics.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = unwrap(model)
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    attributes = [(module, vars(module).copy()) for module in modules]
    own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = RandomState({t.device for t in (*own.values(), *buffers.values())})
    gradients = {name: p.grad for name, p in own.items()}
    token = _MEASURING.set(True)
    try:
        for p in own.values():
            p.grad = None
        if evaluating:
            _switch_to_eval(model)
        refuse_batch_norm(model)
        # Compiled parts run eagerly: gradients of single examples would recompile them, and use up
        # the recompilations that the user's own training may need.
        eager = torch.compiler.set_stance("force_eager")
        with torch.inference_mode(False), torch.enable_grad(), eager:
            yield Forward(model, own, buffers, state)
        written = [name for name, p in own.items() if p.grad is not None]
        if written:
            raise ValueError(
                f"model adds to .grad of its weights in its backward pass ({', '.join(written)}), "
                "by a function that calls backward() itself, so that their gradients cannot be "
                "told from each other; give torch.utils.checkpoint.checkpoint use_reentrant=False, "
                "or freeze these weights"
            )
    finally:
        _MEASURING.reset(token)
        for name, p in own.items():
            p.grad = gradients[name]
        for module, training in modes:
            module.training = training
        for module, before in attributes:
            _restore_attributes(module, before)
        state.restore()


class CoupledExamplesError(ValueError):
    """What one example gives depends on the others."""


class NoLogitsError(ValueError):
    """What a model returned holds no logits."""


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or a record as Hugging Face's models give.

    Raises:
        ValueError: If there are none.
    """
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise NoLogitsError(
            f"model must return a tensor of logits or a record with a field `logits`, "
            f"got {type(output).__name__}; wrap the model in one that returns its logits"
        )
    return output


def plain(tensor: Tensor) -> Tensor:
    """A view of a user's tensor for autograd to compute with; a copy if it is an inference tensor.

    An inference tensor cannot be saved for a backward pass.
    """
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def leaf(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """As :func:`plain`, for autograd to start from; the user's own tensor stays as it was."""
    return plain(tensor).requires_grad_(requires_grad)


def _switch_to_eval(model: nn.Module) -> None:
    # Not model.eval(): an overridden train() may do more than set the flag, for instance merge
    # adapters into the weights.
    for module in model.modules():
        module.training = False


def _restore_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    """Undo what a forward pass has set on a module: counters, cached activations."""
    now = vars(module)
    if now.keys() != before.keys():
        for name in now.keys() - before.keys():
            del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def refuse_batch_norm(model: nn.Module) -> None:
    """Raise if a BatchNorm of the model uses the statistics of the batch.

    Raises:
        ValueError: If one does.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return  # names cost more than a look
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.training:
            remedy = "call model.eval() first, or put this layer alone in eval mode"
        elif module.running_mean is None:
            remedy = "give it running statistics (track_running_stats=True) or use GroupNorm"
        else:
            continue
        raise CoupledExamplesError(
            f"model couples the examples of a batch: {type(module).__name__} {name!r} normalises "
            f"by statistics of the batch, so that no example has a value of its own; {remedy}"
        )


def _is_active_dropout(module: nn.Module) -> bool:
    return module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
