"""Operators that move numbers, pick some of them, or write constants beside them."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from memtools.critical.ranges import Range
from memtools.critical.roundoff import Roundoff
from memtools.critical.rules.table import rule

aten = torch.ops.aten


@rule(
    *(aten.alias, aten.cat, aten.clone, aten.copy, aten.detach, aten.diagonal, aten.expand),
    *(aten.flip, aten.gather, aten.index, aten.index_select, aten.new_ones, aten.new_zeros),
    *(aten.ones_like, aten.permute, aten.pixel_shuffle, aten.pixel_unshuffle, aten.repeat),
    *(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d),
    *(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d),
    *(aten.roll, aten.select, aten.slice, aten.split, aten.split_with_sizes, aten.squeeze),
    *(aten.stack, aten.t, aten.transpose, aten.unbind, aten.unfold, aten.unsqueeze),
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten.view, aten.where, aten.zero, aten.zeros_like, aten._to_copy, aten._unsafe_view),
    *(aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.amin, aten.max),
    *(aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.maximum, aten.min),
    *(aten.minimum, aten.relu),
)
def _monotone(operator: Any, rounding: Roundoff, *args: Any, **kwargs: Any) -> Any:
    """Moves numbers or picks some of them; falls nowhere if one of them rises, and is exact."""
    lows, highs = (
        operator(*ends[0], **ends[1])
        for ends in (
            tree_map_only(Range, lambda b: b.lower, (args, kwargs)),
            tree_map_only(Range, lambda b: b.upper, (args, kwargs)),
        )
    )
    if isinstance(lows, Tensor):
        return Range(lows, highs)
    # Beside the largest number comes its place, an integer, of which nothing is known.
    return [Range(*ends) for ends in zip(lows, highs, strict=True) if ends[0].is_floating_point()]


@rule(
    *(aten.clamp, aten.clamp_max, aten.clamp_min, aten.constant_pad_nd, aten.fill),
    *(aten.full_like, aten.hardtanh, aten.masked_fill, aten.new_full),
)
def _with_number(operator: Any, rounding: Roundoff, *args: Any, **kwargs: Any) -> Range:
    """As :func:`_monotone`, beside a number that the model rounds to its dtype."""
    bounds = _monotone(operator, rounding, *args, **kwargs)
    return bounds.widened(rounding.of(1) * (bounds.size + rounding.floor))


@rule(aten.empty_like, aten.new_empty)
def _memory(operator: Any, rounding: Roundoff, *args: Any, **kwargs: Any) -> Range:
    """Nothing is known until something is written there."""
    bounds = _monotone(operator, rounding, *args, **kwargs)
    return Range(bounds.lower.fill_(math.nan), bounds.upper.fill_(math.nan))
