"""What there is to know about an architecture before several models of it run as one."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from memtools import seeds
from memtools.batch import LossFunction, per_example_losses
from memtools.guard import logits_of
from memtools.training.ensemble.grouping import signature
from memtools.training.ensemble.noise import Draw, NoiseModules

__all__ = ["Probe"]


class Probe:
    """Runs a copy of a model once for each size of a batch, in train mode.

    Args:
        model: On the device and in the dtype of the training; it stays as it is.
        inputs: Inputs of its training set.
        targets: Their targets.
        sizes: Sizes of the batches to come.
        loss_fn: ``None`` is the cross-entropy.

    Attributes:
        template: The copy, whose dropout and noise are given to it.
        modules: Gives them.
        draws: What an update draws, by the size of its batch.
        trainable: Names of the weights that have a gradient.
        obstacle: Why members cannot run as one, ``None`` if they can.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        sizes: Sequence[int],
        loss_fn: LossFunction | None,
    ) -> None:
        self.draws: dict[int, list[Draw]] = {}
        self.trainable: list[str] = []
        self.obstacle = _static_obstacle(model)
        if self.obstacle is not None:
            return
        try:
            self.obstacle = self._run(deepcopy(model), inputs, targets, sizes, loss_fn)
        except Exception as error:  # whatever a user's module raises
            text = str(error).strip().split("\n")[0]
            self.obstacle = f"a copy of {type(model).__name__} does not run ({text})"

    def _run(
        self,
        template: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        sizes: Sequence[int],
        loss_fn: LossFunction | None,
    ) -> str | None:
        """Fill in what is to be known; an obstacle that was found in the way."""
        self.template, self.modules = template, NoiseModules(template)
        template.train()
        before = {name: buffer.clone() for name, buffer in template.named_buffers()}
        function = signature(template)
        weights = {n: p for n, p in template.named_parameters() if p.requires_grad}
        with seeds.kept(), _Watch(template) as watch:
            for size in sizes:
                indices = torch.arange(size, device=inputs.device)
                with self.modules.recorded() as calls:
                    logits = logits_of(template(inputs[indices]))
                self.draws[size] = list(calls)
                losses = per_example_losses(loss_fn, logits, targets[indices])
                gradients = torch.autograd.grad(
                    losses.sum(), list(weights.values()), allow_unused=True
                )
                # The optimisers of torch leave weights alone that have no gradient.
                pairs = zip(weights, gradients, strict=True)
                self.trainable = [name for name, gradient in pairs if gradient is not None]
        if watch.random is not None:
            return f"{watch.random} draws random numbers of its own in train mode"
        modules = dict(template.named_modules())
        for name, value in template.named_buffers():
            if not torch.equal(value, before[name]):
                owner, _, buffer = name.rpartition(".")
                kind = type(modules[owner]).__name__
                return f"{owner or 'the model'} ({kind}) changes its buffer {buffer} in train mode"
        if signature(template) != function:
            return f"{type(template).__name__} changes its attributes when it is called"
        return None


class _Watch:
    """Notes the first module in which the random state moves on."""

    def __init__(self, model: nn.Module) -> None:
        self.random: str | None = None
        self._model = model

    def __enter__(self) -> "_Watch":
        self._hooks = []
        for name, module in self._model.named_modules():
            states: list[seeds.RandomState] = []

            def before(module: nn.Module, args: object, states: list = states) -> None:
                devices = {p.device for p in self._model.parameters()}
                states.append(seeds.RandomState(devices))

            def after(
                module: nn.Module,
                args: object,
                output: object,
                states: list = states,
                name: str = name,
            ) -> None:
                # The inner module is through before the outer one, so that it is named.
                if not states.pop().is_present() and self.random is None:
                    self.random = f"{name or 'the model'} ({type(module).__name__})"

            self._hooks.append(module.register_forward_pre_hook(before))
            self._hooks.append(module.register_forward_hook(after))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _static_obstacle(model: nn.Module) -> str | None:
    """What can be seen without a call."""
    names: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(weight), name)
        if first != name:
            return f"{first} and {name} are one tied weight"
    if len({p.dtype for p in model.parameters()}) > 1:
        return "weights have several dtypes"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for name, module in model.named_modules():
        if any(getattr(module, kind) for kind in hooks):
            return f"{name or 'the model'} ({type(module).__name__}) has hooks"
    return None
