"""A proof that no point of a box is of another class, by interval bounds through the whole model.

The model runs once, on a tensor that holds two numbers for each one. Every operator of PyTorch's
that it calls arrives at :class:`_Propagation`, which looks for a rule (``rules/``). What has
none, random numbers, and every look at a value end the proof, and never make a wrong one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from memtools.critical.ranges import Range, Scores
from memtools.critical.roundoff import Roundoff, UnsupportedError
from memtools.critical.rules import RULES
from memtools.guard import Forward

__all__ = ["Proof", "prove_uncritical"]


@dataclass(frozen=True)
class Proof:
    """For which examples it is proved that they are not critical.

    Attributes:
        is_proved: Whether every point of the box has the predicted class, ``(n,)`` bool. False
            says nothing: the bounds may be too wide.
        unsupported: Why nothing is proved for any of them: a sentence that names the first
            operator without a rule; ``None`` if there was none.
    """

    is_proved: Tensor
    unsupported: str | None


def prove_uncritical(
    forward: Forward,
    low: Tensor,
    high: Tensor,
    predicted: Tensor,
    call: Callable[[Tensor], Tensor] | None = None,
) -> Proof:
    r"""Prove that no point of the box around an example is of another class than the example.

    Interval bound propagation (Gowal et al. 2018, arXiv 1810.12715): bounds of each layer's numbers
    from those of the layer before, and at the end for all classes :math:`k \ne c`

    .. math:: \min_{l \le h \le u} (w_c - w_k) \cdot h + b_c - b_k > 0,

    through the last linear layer in one piece. A softmax or log-softmax may follow it. The proof
    holds for the model as it is computed, rounding included, in any batch and order of summation
    on the same kind of device; what is assumed stands in ``roundoff.py``. It does not hold
    in half precision, autocast or TF32, which are unsupported. Memory: that of a forward pass in
    float64, times three or so.

    Args:
        forward: The model in eval mode, from ``untouched(model, evaluating=True)``.
        low: Smallest value of each input, ``(n, ...)``.
        high: Largest, of the same shape and dtype.
        predicted: Class c of each example, ``(n,)`` int64.
        call: What gives the logits, if it is not the model itself.

    Returns:
        A :class:`Proof`.
    """
    propagation = _Propagation()
    is_proved = torch.zeros_like(predicted, dtype=torch.bool)
    try:
        with torch.no_grad(), propagation:
            lower, upper = (wall.to(torch.float64, copy=True) for wall in (low, high))
            logits = (call or forward)(propagation.interval(Range(lower, upper), low.dtype))
        if forward.drew_random_numbers():
            raise UnsupportedError("the model draws random numbers")
        if logits.ndim != 2:
            raise UnsupportedError(f"the model returns a tensor of shape {tuple(logits.shape)}")
        scores = propagation.scores(logits)
    except Exception as error:  # anything may go wrong where a model meets what is no plain tensor
        return Proof(is_proved, propagation.unsupported or _reason(error))
    if propagation.unsupported is None:
        is_proved = scores.is_largest(predicted)
    return Proof(is_proved, propagation.unsupported)


class _Interval(Tensor):
    """A tensor of whose numbers only bounds are known."""

    bounds: Range
    propagation: "_Propagation"
    writes: int

    @staticmethod
    def __new__(
        cls: type, bounds: Range, dtype: torch.dtype, propagation: "_Propagation"
    ) -> "_Interval":
        interval = Tensor._make_wrapper_subclass(
            cls,
            bounds.lower.shape,
            strides=bounds.lower.stride(),
            dtype=dtype,
            device=bounds.lower.device,
        )
        interval.bounds, interval.propagation = bounds, propagation
        interval.writes = propagation.writes
        # Code that reads memory by its address shall fail, and not read what is not there.
        torch._C._set_throw_on_mutable_data_ptr(interval)
        return interval

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            if func in (Tensor.storage, Tensor.untyped_storage) or _name(func) == "__set__":
                raise UnsupportedError("reaches past the operators")
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        except Exception as error:
            # Noted here, since a model may catch it and go on as it would not do with numbers.
            for interval in _intervals((args, kwargs)):
                interval.propagation.note(f"{_name(func)} {_reason(error)}")
            raise

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise UnsupportedError(f"calls {func} where it cannot be followed")


class _Propagation(TorchDispatchMode):
    """Runs the operators of a model on intervals.

    Attributes:
        unsupported: What was met first that has no rule.
        writes: In-place operators so far. After each, nothing is known of an interval but its
            bounds: it may have written to what the interval was computed from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsupported: str | None = None
        self.writes = 0

    def note(self, sentence: str) -> None:
        """Keep in mind why nothing is proved, unless there is a reason already."""
        self.unsupported = self.unsupported or sentence

    def interval(self, bounds: Range, dtype: torch.dtype) -> _Interval:
        """A tensor with these bounds, NaN in place of what says nothing or may overflow."""
        limit = Roundoff(dtype).limit
        is_known = (-limit <= bounds.lower) & (bounds.lower <= bounds.upper)
        unknown = ~(is_known & (bounds.upper <= limit))
        bounds.lower.masked_fill_(unknown, torch.nan)
        bounds.upper.masked_fill_(unknown, torch.nan)
        return _Interval(bounds, dtype, self)

    def scores(self, logits: Tensor) -> Scores:
        """What tells which class is the largest."""
        rounding = Roundoff(logits.dtype)
        if not isinstance(logits, _Interval):
            return Scores.of(Range.of(logits), rounding)
        bounds = self._bounds(logits, rounding)
        return bounds.scores or Scores.of(bounds, rounding)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if not is_random and not _intervals((args, kwargs)):
            return func(*args, **kwargs)
        try:
            if is_random:
                raise UnsupportedError("draws random numbers")
            return self._run(func, args, kwargs)
        except Exception as error:
            self.note(f"{func} {_reason(error)}")
            raise

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operator gives for intervals: by its rule, or by those that it consists of."""
        functional = _functional(func)
        if functional is not None and functional.overloadpacket in RULES:
            return self._write(args[0], self._run(functional, args, kwargs))
        if func.overloadpacket in RULES and not func._schema.is_mutable:
            return self._by_rule(func, args, kwargs)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise UnsupportedError("has no rule for intervals")
        return result

    def _by_rule(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        # Shapes and dtypes of the results by PyTorch's own account.
        empty_args, empty_kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        expected = func(*empty_args, **empty_kwargs)
        device = _intervals((args, kwargs))[0].device

        def unknown(like: Tensor) -> _Interval:
            nothing = torch.full(like.shape, torch.nan, dtype=torch.float64, device=device)
            return _Interval(Range(nothing, nothing.clone()), like.dtype, self)

        first = tree_leaves(expected)[0]
        if not any(i.is_floating_point() for i in _intervals((args, kwargs))):
            return tree_map_only(Tensor, unknown, expected)  # moved places of largest numbers
        rounding = Roundoff(first.dtype)

        def argument(value: Any) -> Any:
            if isinstance(value, _Interval):
                return self._bounds(value, rounding)
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.to(rounding.dtype).double()
            if isinstance(value, torch.dtype) and value.is_floating_point:
                return torch.float64
            return value

        rule = RULES[func.overloadpacket]
        rule_args, rule_kwargs = tree_map(argument, (args, kwargs))
        found = rule(func, rounding, *rule_args, **rule_kwargs)
        found = iter([found] if isinstance(found, Range) else found)
        is_view = any(r.alias_info is not None for r in func._schema.returns)

        def result(like: Tensor) -> _Interval:
            if not like.is_floating_point() or (bounds := next(found, None)) is None:
                return unknown(like)
            if bounds.lower.shape != like.shape:
                raise UnsupportedError(f"has a rule that does not give its shape, {like.shape}")
            if is_view:  # what is written to it shall arrive where it does in the model
                return _Interval(bounds, like.dtype, self)
            return self.interval(bounds, like.dtype)

        return tree_map_only(Tensor, result, expected)

    def _write(self, target: Any, result: _Interval) -> _Interval:
        """Let an in-place operator change its first argument, and all that share its memory."""
        if not isinstance(target, _Interval):
            raise UnsupportedError("writes what depends on the input into a constant")
        if (target.shape, target.dtype) != (result.shape, result.dtype):
            raise UnsupportedError("changes the shape or rounds in place")
        self.writes += 1
        target.bounds.lower.copy_(result.bounds.lower)
        target.bounds.upper.copy_(result.bounds.upper)
        return target

    def _bounds(self, interval: _Interval, rounding: Roundoff) -> Range:
        """What is known of an interval that an operator takes for a result in a dtype."""
        if interval.propagation is not self:
            raise UnsupportedError("takes a tensor from an earlier forward pass")
        if not interval.is_floating_point():
            raise UnsupportedError("uses the place of a largest number")
        bounds = interval.bounds
        if interval.writes != self.writes:
            bounds = replace(bounds, scores=None)
        if interval.dtype == rounding.dtype:
            return bounds
        return bounds.widened(rounding.of(1) * (bounds.size + rounding.floor))


def _functional(func: Any) -> Any:
    """What an in-place operator computes, as an operator of its own; ``None`` for all others."""
    namespace, _, name = func._schema.name.partition("::")
    if not func._schema.is_mutable or namespace != "aten" or not name.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    functional = getattr(packet, func._overloadname, None)
    if functional is None or any(r.alias_info is not None for r in functional._schema.returns):
        return None  # it would change the shape and not the numbers
    return functional


def _intervals(values: Any) -> list[_Interval]:
    return [value for value in tree_leaves(values) if isinstance(value, _Interval)]


def _without_numbers(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _reason(error: Exception) -> str:
    if isinstance(error, UnsupportedError):
        return str(error)
    message = str(error).partition("\n")[0]
    return f"fails on intervals: {type(error).__name__}: {message}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", str(function))
