"""The operators on whatever tensors there are: right, or refused in words."""

import math
from typing import Any

import memtools_kernels as kernels
import pytest
import torch
from torch import Tensor, nn

from tests.properties.operators import OPERATORS
from tests.properties.tensors import ugly

ARGUMENTS = [(name, key) for name, op in OPERATORS.items() for key in op.arguments]


def of_another_kind(fitting: Tensor) -> dict[str, Tensor]:
    """The same numbers in dtypes and layouts that no operator takes."""
    plain = fitting.float()
    flat = plain.reshape(-1, plain.shape[-1] if plain.ndim else 1)
    return {
        "complex": fitting.to(torch.complex64),
        "boolean": fitting.bool(),
        "short integers": fitting.int(),
        "sparse": fitting.to_sparse(),
        "compressed": flat.to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(plain, 0.1, 0, torch.quint8),
    }


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_no_tensor_of_numbers_is_refused_in_words(name, argument):
    operator = OPERATORS[name]
    bad = of_another_kind(operator.arguments[argument])
    bad |= {kind: x for kind, x in ugly().items() if not isinstance(x, Tensor)}
    if argument in ("weights", "noise"):
        del bad["None"]  # which is none of them
    for kind, value in bad.items():
        with pytest.raises((TypeError, ValueError), match=rf"^{argument} (must|is)") as caught:
            operator.call(**operator.arguments | {argument: value})
        assert caught.value, kind


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_other_tensors_are_refused_or_give_a_number_for_each_row(name, argument):
    operator = OPERATORS[name]
    for kind, value in ugly().items():
        if not isinstance(value, Tensor):
            continue
        try:
            result = operator.call(**operator.arguments | {argument: value})
        except (TypeError, ValueError) as error:
            # Of two that do not fit, either may be named.
            if not any(key in str(error) for key in operator.arguments):
                raise
        else:
            for field in result if isinstance(result, tuple) else [result]:
                assert field is None or len(field) in (4, *value.shape[:1]), kind


def seen_otherwise(x: Tensor) -> dict[str, Tensor]:
    """The same tensor by other strides, by a bit that says to negate it, as a parameter, ..."""
    room = torch.full((3, *x.shape), 7, dtype=x.dtype)
    room[1] = x
    views = {
        "offset": room[1],
        "flipped twice": x.flip(0).flip(0) if x.ndim else x,
        "last dimension first": x.movedim(-1, 0).contiguous().movedim(0, -1) if x.ndim else x,
        "of stride 0": x[:1].expand_as(x) if x.ndim else x,
    }
    if x.is_floating_point():
        views["negated"] = torch.complex(x, -x).conj().imag
        views["parameter"] = nn.Parameter(x)
        views["half precision"] = x.bfloat16().to(x.dtype)
    return views


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_views_count_as_the_numbers_that_they_show(name, argument):
    operator = OPERATORS[name]
    torch.manual_seed(0)
    arguments = {
        key: x if not x.is_floating_point() else torch.rand_like(x).bfloat16().float() + 0.25
        for key, x in operator.arguments.items()
    }
    for kind, view in seen_otherwise(arguments[argument]).items():
        if (name, argument) == ("box_step", "points") and kind not in ("offset", "negated"):
            continue  # which are changed in place, and must be contiguous
        shown = view.detach().clone(memory_format=torch.contiguous_format)
        found = operator.call(**arguments | {argument: view})
        expected = operator.call(**arguments | {argument: shown})
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=kind)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("entry", [-1, 2.5, "2"])
def test_windows_that_are_none_are_refused(name, entry):
    options: dict[str, Any] = {"kernel_size": (2,), name: (entry,)}
    with pytest.raises(ValueError, match=rf"^{name} must hold whole numbers from"):
        kernels.patch_norms(torch.ones(4, 2, 3), torch.ones(4, 3, 2), **options)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "dilation"])
def test_windows_of_no_size_are_refused(name):
    options: dict[str, Any] = {"kernel_size": (2,), name: (0,)}
    with pytest.raises(ValueError, match=rf"^{name} must hold whole numbers from 1"):
        kernels.patch_norms(torch.ones(4, 2, 3), torch.ones(4, 3, 2), **options)


@pytest.mark.parametrize("p", [0, 3, -1, 1.5, math.nan, -math.inf, "2", None])
def test_orders_of_norms_that_are_none_are_refused(p):
    with pytest.raises(ValueError, match=r"^p must be 1, 2 or math\.inf"):
        kernels.row_norms(torch.ones(4, 2), p)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_label_smoothing_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"^label_smoothing must be from 0 to 1"):
        kernels.logit_scores(torch.eye(3), torch.arange(3), label_smoothing=share)


@pytest.mark.parametrize("d", [-1, 2.5, None])
def test_noise_of_no_size_is_refused(d):
    with pytest.raises(ValueError, match=r"^d must be a whole number"):
        kernels.box_noise(torch.arange(2), torch.arange(2), d)
