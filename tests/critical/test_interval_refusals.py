"""What ends a proof: operators without a rule, looks at values, noise, imprecise products."""

import random
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memtools.critical.intervals import prove_uncritical
from memtools.critical.roundoff import Roundoff, UnsupportedError, refuse_inexact_products
from memtools.guard import untouched


def looked_at(x):
    return x if x.sum().item() > 0 else -x


def branched(x):
    return x if x.sum() > 0 else -x


def caught(look):
    """A model that goes on when it fails to look at its numbers."""

    def function(x):
        try:
            return x if look(x) else -x
        except Exception:
            return x

    return function


def with_noise(x):
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)


def with_python_noise(x):
    return x * random.random()


def into_a_constant(x):
    memory = torch.zeros(x.shape, dtype=x.dtype)
    memory[:] = x
    return memory


def given_out(operator):
    """Into memory that is given for the result."""

    def function(x):
        memory = torch.zeros(x.shape, dtype=x.dtype)
        operator(x, memory)
        return memory

    return function


def with_other_data(x):
    y = x + 0
    y.data = -100 * x
    return y


def remembered(kept):
    """Uses what an earlier forward pass left."""

    def function(x):
        kept.append(x)
        return kept[0]

    return function


UNSUPPORTED = {
    "sin": (torch.sin, r"aten\.sin\.default has no rule for intervals"),
    "cumsum": (lambda x: x.cumsum(1), r"aten\.cumsum\.default has no rule"),
    "in place": (lambda x: x.sin_(), r"aten\.sin_\.default has no rule"),
    "inside": (lambda x: F.normalize(x), r"aten\.linalg_vector_norm\.default has no rule"),
    "item": (looked_at, r"aten\._local_scalar_dense\.default has no rule"),
    "bool": (branched, r"aten\.gt\.Scalar has no rule"),
    "caught item": (caught(lambda x: x[0, 0].item() > 0), r"_local_scalar_dense"),
    "caught bool": (caught(lambda x: bool(x[0, 0])), r"_local_scalar_dense|is_nonzero"),
    "caught numpy": (caught(lambda x: x.numpy()[0, 0] > 0), r"numpy"),
    "caught array": (caught(lambda x: np.asarray(x)[0, 0] > 0), r"numpy|array"),
    "caught list": (caught(lambda x: x.tolist()[0][0] > 0), r"tolist"),
    "caught storage": (
        caught(lambda x: x.untyped_storage().data_ptr()),
        r"untyped_storage reaches past the operators",
    ),
    "caught address": (caught(lambda x: x.data_ptr()), r"data_ptr fails on intervals"),
    "caught text": (caught(lambda x: "-" in str(x)), r"aten|repr|str"),
    "nonzero": (lambda x: x[x > 0], r"aten\.gt\.Scalar has no rule"),
    "own noise": (with_noise, r"aten\.randn\.\w+ draws random numbers"),
    "noise": (torch.rand_like, r"aten\.rand_like\.default draws random numbers"),
    "dropout": (lambda x: F.dropout(x, 0.5), r"draws random numbers"),
    "python's noise": (with_python_noise, r"draws random numbers"),
    "constant": (into_a_constant, r"aten\.copy_\.default writes what depends on the input"),
    "out of cat": (
        given_out(lambda x, out: torch.cat([x], out=out)),
        r"aten\.cat\.out has no rule",
    ),
    "out of add": (
        given_out(lambda x, out: torch.add(x, 1, out=out)),
        r"aten\.add\.out has no rule",
    ),
    "other data": (with_other_data, r"__set__ reaches past the operators"),
    "two intervals": (lambda x: x @ x.T @ x, r"aten\.mm\.default multiplies two tensors"),
    "scaled product": (
        lambda x: torch.addmm(torch.zeros(4), x, torch.eye(6, 4), alpha=2),
        r"aten\.addmm\.default is scaled by alpha or beta",
    ),
    "interval bias": (
        lambda x: torch.addmm(x[:4, :4], x, torch.eye(6, 4).to(x)),
        r"aten\.addmm\.default adds what depends on the input",
    ),
    "kernel": (lambda x: F.conv1d(x[:, None], x[:1, None, :3]), r"has a kernel that depends"),
    "unpooled": (
        lambda x: F.max_unpool1d(*F.max_pool1d(x[:, None], 2, return_indices=True), [2]),
        r"max_unpool2d\.default has no rule",
    ),
    "place of the largest": (
        lambda x: x.gather(1, x.max(1, keepdim=True).indices),
        r"aten\.gather\.default uses the place of a largest number",
    ),
    "batch statistics": (lambda x: F.instance_norm(x[:, None]), r"statistics of the input"),
    "exponent": (lambda x: x**0.1, r"aten\.pow\.Tensor_Scalar has the exponent 0\.1"),
    "threshold": (
        lambda x: F.softplus(x, threshold=1000),
        r"aten\.softplus\.default has the threshold 1000, before which exp may overflow",
    ),
    "exponents": (lambda x: 2**x, r"aten\.pow\.Scalar has an exponent that is no number"),
    "parameter": (lambda x: F.prelu(x, x[0, :1]), r"has a parameter that depends on the input"),
    "rounded": (lambda x: torch.div(x, 2, rounding_mode="floor"), r"aten\.div\.Tensor_mode"),
    "turned in place": (lambda x: x.t_(), r"aten\.t_\.default has no rule"),
    "half": (lambda x: x.half(), r"computes in torch\.float16, and not in float32 or float64"),
    "bfloat16": (lambda x: x.bfloat16().float(), r"computes in torch\.bfloat16"),
    "integers": (lambda x: x.long().float(), r"_to_copy\.default computes in torch\.int64"),
    "shape": (lambda x: x[:, None], r"the model returns a tensor of shape \(3, 1, 6\)"),
    "no tensor": (lambda x: None, r"NoLogitsError: model must return a tensor"),
    "own error": (lambda x: [][0], r"IndexError: list index out of range"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_named_and_nothing_is_proved(intervals, name):
    function, sentence = UNSUPPORTED[name]
    x = torch.zeros(3, 6)
    x[:, 0] = 100
    proof = intervals.prove(
        intervals.Function(function), x - 0.1, x + 0.1, torch.zeros(3, dtype=torch.int64)
    )
    assert proof.unsupported is not None
    assert re.search(sentence, proof.unsupported), proof.unsupported
    assert not proof.is_proved.any()


def test_numbers_of_an_earlier_pass_are_not_taken_for_those_of_this(intervals):
    model = intervals.Function(remembered([]))
    x = torch.zeros(3, 6)
    with untouched(model, evaluating=True) as forward:
        classes = torch.zeros(3, dtype=torch.int64)
        first = prove_uncritical(forward, x, x, classes)
        second = prove_uncritical(forward, x, x, classes)
    assert first.unsupported is None
    assert re.search("earlier forward pass", second.unsupported or "")


@contextmanager
def setting(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_products_of_less_precision_are_unsupported(intervals, monkeypatch):
    model, x = nn.Linear(6, intervals.CLASSES), torch.zeros(3, 6)
    image, conv = (
        torch.zeros(3, *intervals.IMAGE),
        intervals.network(nn.Conv2d(2, 4, 3), features=64),
    )
    assert intervals.prove(model, x, x).unsupported is None
    with setting(torch.backends, "fp32_precision", "tf32"):
        assert re.search("rounds float32 to tf32", intervals.prove(model, x, x).unsupported or "")
        assert re.search(
            "rounds float32 to tf32", intervals.prove(conv, image, image).unsupported or ""
        )
        model.double()
        assert intervals.prove(model, x.double(), x.double()).unsupported is None
        model.float()
    with monkeypatch.context() as changed:
        changed.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
        assert re.search(
            "DNNL_DEFAULT_FPMATH_MODE=BF16", intervals.prove(model, x, x).unsupported or ""
        )
    with torch.autocast("cpu"):
        assert re.search("bfloat16", intervals.prove(model, x, x).unsupported or "")
    with torch.backends.mkldnn.flags(enabled=False):
        assert re.search("NNPACK", intervals.prove(conv, image, image).unsupported or "")
    assert re.search("float16", intervals.prove(model.half(), x.half(), x.half()).unsupported or "")


def test_convolutions_of_cudnn_are_unsupported():
    """A GPU is not needed to say so: the device is all that is looked at."""
    cuda = torch.device("cuda")
    with pytest.raises(UnsupportedError, match="runs in cuDNN"):
        refuse_inexact_products(Roundoff(torch.float64), cuda, "conv")
    with torch.backends.cudnn.flags(enabled=False):
        refuse_inexact_products(Roundoff(torch.float32), cuda, "conv")
        with (
            setting(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
            pytest.raises(UnsupportedError, match="tf32"),
        ):
            refuse_inexact_products(Roundoff(torch.float32), cuda, "conv")
    refuse_inexact_products(Roundoff(torch.float32), cuda, "matmul")
    with pytest.raises(UnsupportedError, match="runs on mps"):
        refuse_inexact_products(Roundoff(torch.float32), torch.device("mps"), "matmul")
