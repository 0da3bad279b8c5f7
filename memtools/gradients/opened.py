"""Functions of PyTorch's that are written in Python, opened for a function mode."""

from types import FunctionType

from torch.nn import functional as F

__all__ = ["OPEN"]


def _opened(function: FunctionType) -> FunctionType:
    """A copy of a function of ``torch.nn.functional`` inside which a mode sees the operators.

    The original hands itself to the mode before it does anything; the copy goes on.
    """
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    names = function.__globals__ | dict.fromkeys(checks, lambda *_: False)
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


OPEN = {
    function: _opened(function)
    for function in (
        F.batch_norm,
        F.embedding,
        F.group_norm,
        F.instance_norm,
        F.layer_norm,
        F.multi_head_attention_forward,
        F.rms_norm,
    )
}
"""The functions with weights that are written in Python."""
