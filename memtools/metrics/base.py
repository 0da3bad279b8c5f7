"""What all metrics of this package share: settings in the state, and no half updates."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memtools.extras import require
from memtools.metrics.settings import described, fingerprint

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require("torchmetrics", "metrics").Metric

__all__ = ["SettledMetric"]


class SettledMetric(Metric):
    """A metric whose settings are part of its state.

    A ``MetricCollection`` shares one state between metrics whose states are equal. With the
    settings in it, it shares none between metrics that measure different things; and what was
    measured with other settings is refused where states are merged, synchronised or loaded.

    An update that raises leaves the metric as it was. States keep their dtype: ``half()``,
    ``to(dtype)`` and ``set_dtype`` change no sum (on a device without float64 they are float32).

    Args:
        settings: Whatever changes the result, by name.
        **kwargs: Settings of :class:`torchmetrics.Metric`.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    full_state_update: bool | None = False

    settings: Tensor

    def __init__(self, settings: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._described = {name: described(value) for name, value in settings.items()}
        # The first state, so that others are refused before anything is added up.
        self.add_state("settings", fingerprint(type(self).__name__, self._described), _the_same)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and return the value of this batch alone."""
        with self._all_or_nothing():
            return super().forward(*args, **kwargs)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add what another metric with the same settings has seen.

        Args:
            incoming_state: The metric, or its ``metric_state``.

        Raises:
            ValueError: If its class, its settings or its shapes are others. This metric is
                unchanged then.
        """
        if isinstance(incoming_state, SettledMetric):
            self._refuse_other_settings(incoming_state)
        elif isinstance(incoming_state, dict):
            self._refuse_other_shapes(incoming_state)
        with self._all_or_nothing():
            super().merge_state(incoming_state)
            self._computed = None
            seen = incoming_state.update_count if isinstance(incoming_state, Metric) else 1
            self._update_count += seen

    def _refuse_other_settings(self, other: "SettledMetric") -> None:
        for name, value in self._described.items():
            theirs = other._described.get(name, value)
            if theirs != value:
                raise ValueError(
                    f"{name} must be the same in both metrics, got {value} here and {theirs} in "
                    "the one that is merged; build both with the same settings"
                )

    def _refuse_other_shapes(self, states: dict[str, Any]) -> None:
        if "settings" in states:
            _the_same(torch.stack([self.settings, states["settings"]]))
        # Some would broadcast.
        for name in self._defaults:
            expected, found = getattr(self, name).shape, getattr(states.get(name), "shape", None)
            if found not in (None, expected):
                raise ValueError(
                    f"{name} must have shape {tuple(expected)} in the state that is merged, got "
                    f"{tuple(found)}; pass metric_state of a metric with the same settings"
                )

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        # References are enough: no state is ever written to in place.
        states = {name: getattr(self, name) for name in self._defaults}
        flags = {name: getattr(self, name) for name in _FLAGS}
        try:
            yield
        except BaseException:
            for name, value in (states | flags).items():
                setattr(self, name, value)
            raise

    def _wrap_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_update(update)

        @wraps(update)
        def update_or_nothing(*args: Any, **kwargs: Any) -> None:
            with self._all_or_nothing():
                wrapped(*args, **kwargs)

        return update_or_nothing

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> Any:
        def moved(tensor: Tensor) -> Tensor:
            device = fn(torch.zeros(1, device=tensor.device)).device
            if device.type == "mps" and tensor.dtype == torch.float64:
                tensor = tensor.float()
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(device)

        return super()._apply(moved, exclude_state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {name: prefix + name for name in self._defaults if prefix + name in state_dict}
        if "settings" in names:
            saved = state_dict[names["settings"]]
            if not torch.equal(saved.to(self.settings), self.settings):
                error_msgs.append(
                    f"{prefix}settings: the state was saved by a metric with other settings than "
                    f"{self._described}; build the metric as it was built then"
                )
                for name in names.values():
                    del state_dict[name]
                names = {}
        for name, key in names.items():
            state_dict[key] = state_dict[key].to(getattr(self, name))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if names:
            self._computed = None
            self._update_count = max(1, self._update_count)


_FLAGS = (
    "_update_count",
    "_computed",
    "_forward_cache",
    "_cache",
    "_is_synced",
    "_to_sync",
    "_should_unsync",
    "_enable_grad",
    "compute_on_cpu",
)


def _the_same(settings: Tensor) -> Tensor:
    """The settings that all rows of ``(k, 16)`` hold."""
    if not bool((settings == settings[0]).all()):
        raise ValueError(
            "settings must be the same in all metrics that are added up, got different ones; "
            "build the metric with the same settings in every process"
        )
    return settings[0]
