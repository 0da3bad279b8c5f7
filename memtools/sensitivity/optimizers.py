"""What a tape reads off an optimiser before each update."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from memtools.sensitivity.own_update import OwnUpdate
from memtools.sensitivity.updates import Rule, Slice

__all__ = ["OptimizerReader", "flat"]


class OptimizerReader:
    """Settings and state of an optimiser, as the flat vectors that a rule works on.

    Args:
        optimizer: The optimiser.
        weights: What it trains, by name.
        rule: How it updates.
    """

    def __init__(
        self, optimizer: Optimizer, weights: Mapping[str, nn.Parameter], rule: Rule | OwnUpdate
    ) -> None:
        self._optimizer, self._weights, self._rule = optimizer, weights, rule

    def vectors(self) -> dict[str, Tensor]:
        """The vectors that the optimiser keeps, zeros where it keeps none yet."""
        states = [self._optimizer.state.get(p, {}) for p in self._weights.values()]
        if isinstance(self._rule, Rule):
            keys = [key for key in self._rule.state if self._keeps(key)]
        else:
            keys = sorted({key for state in states for key, v in state.items() if _is_vector(v)})
        vectors = {}
        for key in keys:
            parts = [state.get(key) for state in states]
            vectors[key] = flat(
                [
                    torch.zeros_like(p) if part is None else part.detach()
                    for part, p in zip(parts, self._weights.values(), strict=True)
                ]
            )
        return vectors

    def _keeps(self, key: str) -> bool:
        switch = {"momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad"}.get(key)
        if switch is None or any(group[switch] for group in self._optimizer.param_groups):
            return True
        return any(state.get(key) is not None for state in self._optimizer.state.values())

    def slices(self, gradients: Mapping[str, Tensor | None]) -> tuple[Slice, ...]:
        """The settings of this update, neighbours of equal settings joined."""
        groups = {id(p): g for g in self._optimizer.param_groups for p in g["params"]}
        slices: list[Slice] = []
        start = 0
        for name, p in self._weights.items():
            stop = start + p.numel()
            options = None if gradients[name] is None else self._options(p, groups[id(p)])
            if isinstance(self._rule, Rule) and slices and slices[-1].options == options:
                slices[-1] = Slice(slices[-1].start, stop, options)
            else:
                slices.append(Slice(start, stop, options))
            start = stop
        return tuple(slices)

    def _options(self, p: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(self._rule, OwnUpdate):
            return {
                key: _number(value)
                for key, value in group.items()
                if key not in ("params", "param_names")
            }
        options: dict[str, Any] = {key: group[key] for key in self._rule.options}
        options["lr"] = float(options["lr"])
        state = self._optimizer.state.get(p, {})
        if "betas" in options:
            options["betas"] = tuple(float(beta) for beta in options["betas"])
            options["step"] = float(state.get("step", 0))
            options["decoupled_weight_decay"] = group.get(
                "decoupled_weight_decay", isinstance(self._optimizer, AdamW)
            )
        elif options["momentum"]:
            options["is_first"] = state.get("momentum_buffer") is None
        return options


def flat(tensors: list[Tensor]) -> Tensor:
    """All elements one after the other."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.ndim == 0 else value
