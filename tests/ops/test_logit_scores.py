"""`logit_scores` against one example at a time in float64, reference or interpreted kernel.

TRITON_INTERPRET=1 in the environment chooses the kernel; test_interpreter.py runs this file so.
"""

import importlib
import itertools
import math
import re
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from memtools_kernels import LogitScores, logit_scores
from memtools_kernels.logit_scores import (
    _CACHED,
    _TILE,
    INTERPRET,
    _logit_scores_op,
    _logit_scores_triton,
)
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

# NumPy, which interprets kernels, warns of what IEEE arithmetic defines: inf - inf, 0 * inf.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")

DEVICES = ["cuda", "cpu"] if torch.cuda.is_available() and not INTERPRET else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF, NAN = math.inf, math.nan

SHAPES = [
    (0, 1), (0, 7), (1, 1), (511, 1), (512, 1), (513, 1), (1031, 1),
    (1, 7), (31, 10), (32, 10), (33, 10), (101, 10), (7, 127), (7, 128), (9, 129),
    (3, 511), (3, 512), (3, 513), (2, _TILE - 1), (2, _TILE), (2, _TILE + 1),
    (1, 2 * _TILE), (2, 2 * _TILE + 1)
]  # fmt: skip


class Truth(NamedTuple):
    """The scores of an example, and the sum of absolute terms of each entry of its gradient."""

    loss: float
    probability: float
    el2n: float
    margin: float
    entropy: float
    prediction: int
    correct: bool
    gradient: Tensor
    terms: Tensor


def truth(f, y, smoothing=0.0, ignore_index=-100):
    classes = len(f)
    counts = 0 <= y < classes and y != ignore_index
    if f.isnan().any() or f.max().isinf():
        nothing = torch.full((classes,), NAN if counts else 0.0)
        return Truth(NAN, NAN, NAN, NAN, NAN, -1, False, nothing, nothing)

    prediction = int((f == f.max()).nonzero()[0])
    gaps = f - f.max()
    whole = float(gaps.exp().sum())
    p, log_p = gaps.exp() / whole, gaps - math.log1p(without(gaps, prediction).exp().sum())
    entropy = -float((p * log_p)[p > 0].sum())
    if not counts:
        zeros = torch.zeros(classes)
        return Truth(NAN, NAN, NAN, NAN, entropy, prediction, False, zeros, zeros)

    loss, wrong, share = -float(log_p[y]), float(without(p, y).sum()), smoothing / classes
    if smoothing:
        loss = (1 - smoothing) * loss - float((share * log_p).sum())
    el2n = math.hypot(wrong, *without(p, y).tolist())
    margin = float(f[y] - without(f, y).max()) if classes > 1 else INF
    gradient, terms = p - share, p + share
    gradient[y], terms[y] = smoothing - share - wrong, smoothing + share + wrong
    return Truth(
        loss, float(p[y]), el2n, margin, entropy, prediction, prediction == y, gradient, terms
    )


def without(values, index):
    return torch.cat([values[:index], values[index + 1 :]])


# Every operation rounds by a factor of at most 1 ± eps / 2. A gap to the largest logit is rounded
# once, and once more where a GPU takes exp(x) for 2 ** (x * log2(e)); exp makes of a relative error
# in x an error |x| times as large: gap * eps here, as much again in the yardstick in float64.
# Terms of one sign are added, at most 128 one after another (torch.sum: blocks, 4 levels of 16 and
# up to 32 lanes; the kernel: 12 levels in a tile, as many again as there are tiles): 64 * eps. 16
# more for what follows: logarithm, product, quotient, root.
# Exponentials below the smallest normal number may be lost, and so may their products with gaps.
def tolerance(dtype, rows) -> dict[str, Any]:
    info = torch.finfo(accumulator(dtype))
    underflow = -math.log(info.tiny)
    finite = rows.where(rows.isfinite(), NAN)
    gaps = (finite.where(rows.isfinite(), -INF).amax(1, keepdim=True) - finite).nan_to_num(0.0)
    lost = (gaps + math.log(rows.shape[1]) > underflow).sum(1)
    gap, lost = (float(x.max()) if len(x) else 0.0 for x in (gaps, lost))
    rtol = (2 * min(gap, underflow) + 64 + 16) * info.eps
    return {"rtol": rtol, "atol": lost * underflow * info.tiny}


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def random(shape, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(math.prod(shape))
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)
    targets[3::7] = -100
    return logits.to(device, dtype), targets.to(device)


def fenced(x):
    """The same values amid NaN, so that reading out of bounds shows."""
    buffer = x.new_full([size + 2 for size in x.shape], NAN)
    view = buffer[(slice(1, -1),) * x.ndim]
    return view.copy_(x)


def check(logits, targets, smoothing=0.0, ignore_index=-100, values=None):
    """Compare the scores of ``logits``, which hold ``values`` in some layout, with `truth`."""
    got = logit_scores(
        logits, targets, label_smoothing=smoothing, ignore_index=ignore_index, with_gradients=True
    )
    rows = (logits if values is None else values).double().cpu()
    want = [
        truth(row, target, smoothing, ignore_index)
        for row, target in zip(rows, targets.tolist(), strict=True)
    ]
    within, dtype = tolerance(logits.dtype, rows), accumulator(logits.dtype)
    for name in ("loss", "probability", "el2n", "margin", "entropy"):
        true = torch.tensor([getattr(one, name) for one in want], dtype=torch.float64)
        true = true.to(logits.device, dtype)  # what is too large for it is infinite
        assert_close(
            getattr(got, name), true, **within, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, dtype in (("prediction", torch.int64), ("correct", torch.bool)):
        true = torch.tensor([getattr(one, name) for one in want], dtype=dtype)
        assert_close(getattr(got, name), true.to(logits.device))

    gradients = torch.stack([one.gradient for one in want]) if want else rows
    terms = torch.stack([one.terms for one in want]) if want else rows
    assert got.gradients is not None
    assert got.gradients.shape == logits.shape
    assert (got.gradients.dtype, got.gradients.device) == (logits.dtype, logits.device)
    # Beside the above, gradients are rounded to the type of the logits. The interpreter cuts off
    # what bfloat16 has no room for.
    info = torch.finfo(logits.dtype)
    rounding = info.eps if INTERPRET and logits.dtype == torch.bfloat16 else info.eps / 2
    bound = within["rtol"] * terms + within["atol"] + torch.finfo(accumulator(logits.dtype)).tiny
    bound += rounding * gradients.abs() + info.smallest_normal * info.eps
    found = got.gradients.cpu().double()
    assert torch.equal(found.isnan(), gradients.isnan())
    assert not ((found - gradients).abs() > bound).any()
    return got


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores(shape, dtype, smoothed, device):
    logits, targets = random(shape, dtype, device)
    if smoothed:
        check(fenced(logits), targets.repeat_interleave(2)[::2], 0.1, values=logits)
    else:
        check(logits, targets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_cols", [_CACHED // 2, _CACHED // 2 + 1, _CACHED + 4465])
def test_as_much_as_the_reference_caches(n_cols, device):
    check(*random((3, n_cols), device=device), 0.1)


# The kernel walks through three whole tiles and a part of a fourth.
WIDE = 3 * _TILE + 5
PATTERNS = {
    "rising": torch.linspace(-40, 40, WIDE),
    "falling": torch.linspace(40, -40, WIDE),
    "rising by leaps": torch.arange(WIDE) // _TILE * 30.0,
    "falling by leaps": torch.arange(WIDE) // _TILE * -30.0,
    "equal": torch.full((WIDE,), 7.0),
    "largest first": torch.zeros(WIDE).index_fill(0, torch.tensor(0), 15.0),
    "largest last": torch.zeros(WIDE).index_fill(0, torch.tensor(WIDE - 1), 15.0),
    "largest in the second tile": torch.zeros(WIDE).index_fill(0, torch.tensor(_TILE), 15.0),
    "tie of tiles": torch.zeros(WIDE).index_fill(0, torch.tensor([0, WIDE - 1]), 15.0),
    "second before": torch.zeros(WIDE).index_copy(
        0, torch.tensor([_TILE + 1, 3 * _TILE]), torch.tensor([14.0, 15.0])
    ),
    "second behind": torch.zeros(WIDE).index_copy(
        0, torch.tensor([_TILE + 1, 3 * _TILE]), torch.tensor([15.0, 14.0])
    ),
    "nothing in the first tile": torch.zeros(WIDE).index_fill(0, torch.arange(_TILE), -INF),
    "nothing but the first tile": torch.zeros(WIDE).index_fill(0, torch.arange(_TILE, WIDE), -INF),
    "nothing but the end": torch.zeros(WIDE).index_fill(0, torch.arange(3 * _TILE), -INF),
    "only the last": torch.zeros(WIDE).index_fill(0, torch.arange(WIDE - 1), -INF),
    "lowest in the first tile": torch.zeros(WIDE).index_fill(
        0, torch.arange(_TILE), torch.finfo(torch.float32).min
    ),
    "every other": torch.where(torch.arange(WIDE) % 2 == 0, -INF, torch.linspace(-9, 9, WIDE)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "smoothing"), [(torch.float32, 0.1), (torch.float64, 0.0)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_largest_logit_in_any_tile(pattern, dtype, smoothing, device):
    targets = torch.tensor([0, _TILE + 1, 3 * _TILE, WIDE - 1], device=device)
    logits = PATTERNS[pattern].to(device, dtype).expand(len(targets), -1)
    check(logits, targets, smoothing)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("begin", "end", "smoothing"), [(0, 3, 0.0), (0, 3, 0.1), (_TILE - 3, _TILE + 3, 0.0)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_all_digits_where_a_model_is_sure(dtype, begin, end, smoothing, device):
    # All classes are tiny beside one: by sums over all, loss, el2n and entropy would be 0.
    largest = 600 if dtype == torch.float64 else 80
    gaps = [0, 0.01, 1, 4, 17, 30, 45, 60, largest]
    logits = torch.full((len(gaps), end), -INF, dtype=dtype, device=device)
    for row, gap in zip(logits, gaps, strict=True):
        row[begin:] = -gap - 0.25 * (torch.arange(end - begin, device=device) % 4)
    for at in (begin, (begin + end) // 2, end - 1):
        placed = logits.index_fill(1, torch.tensor(at, device=device), 0.0)
        for target in {at, begin}:
            check(placed, torch.full((len(gaps),), target, device=device), smoothing)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("offset", [-32768, -1024, 1024, 32768])
@pytest.mark.parametrize("shape", [(9, 5), (3, 1000), (2, _TILE + 7)], ids=str)
def test_what_all_logits_have_in_common_costs_no_digits(shape, offset, smoothing, device):
    logits, targets = random(shape, device=device)
    logits = (logits * 64).round() / 64  # adding an offset is exact
    assert torch.equal(logits + offset - offset, logits)
    check(logits + offset, targets, smoothing)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_cols", [100, 3 * _TILE])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_any_size(dtype, n_cols, device):
    # Sums of logits would overflow, and so would products of their gaps.
    huge = torch.finfo(dtype).max / 4
    half = (torch.arange(n_cols, device=device) < n_cols / 2).double()
    rows = [huge + 0 * half, -huge + 0 * half, huge - 2 * huge * half, 2 * huge * half - huge]
    rows += [-4 * huge * half, 4 * huge - 4 * huge * half]
    logits = torch.stack(rows).to(dtype)
    for target in (0, n_cols - 1):
        check(logits, torch.full((len(rows),), target, device=device), 0.1)


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "transposed, fenced": lambda x: fenced(x.t()).t(),
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "fenced": fenced,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(67, 5), (3, 1000), (5, 600), (2, _TILE + 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout, shape, dtype, device):
    logits, targets = random(shape, dtype, device)
    check(LAYOUTS[layout](logits), targets, 0.1, values=logits)


@pytest.mark.parametrize("device", DEVICES)
def test_expanded(device):
    targets = random((70, 33), device=device)[1]
    check(random((1, 33), device=device)[0].expand(70, 33), targets)
    check(random((70, 1), device=device)[0].expand(70, 33), targets)
    check(random((70, 33), device=device)[0], torch.tensor(7, device=device).expand(70))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "stride"), [((3, 5), (2**30, 1)), ((2, 3), (1, 2**30))])
def test_offsets_beyond_32_bits(shape, stride, device):
    # 4 GB of address space, of which a few pages are touched.
    storage = torch.empty(2**31 + 5, dtype=torch.float16, device=device)
    logits = storage.as_strided(shape, stride)
    logits.copy_(random(shape)[0])
    for target in range(shape[1]):
        check(logits, torch.full(shape[:1], target, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [2, 7, _TILE, 2 * _TILE + 3])
def test_of_equal_logits_the_first_is_predicted(n_cols, dtype, device):
    for places in ([0, n_cols - 1], [n_cols - 2, n_cols - 1], range(n_cols)):
        logits = torch.zeros(2, n_cols, dtype=dtype, device=device)
        logits[:, places] = 2.0
        got = check(logits, torch.tensor([places[0], places[-1]], device=device))
        assert got.prediction.tolist() == [places[0], places[0]]
        assert got.correct.tolist() == [True, False]
        assert got.margin.tolist() == [0.0, 0.0]
    signed = torch.tensor([[-0.0, 0.0], [0.0, -0.0]], dtype=dtype, device=device)
    assert logit_scores(signed, targets=torch.tensor([0, 0], device=device)).correct.all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_class(dtype, smoothing, device):
    logits = torch.tensor([[-30000.0], [0.0], [30000.0]], dtype=dtype, device=device)
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    got = logit_scores(logits, targets, label_smoothing=smoothing, with_gradients=True)
    zeros = torch.zeros(3, dtype=accumulator(dtype), device=device)
    assert torch.equal(got.loss, zeros)
    assert torch.equal(got.el2n, zeros)
    assert torch.equal(got.entropy, zeros)
    assert torch.equal(got.probability, zeros + 1)
    assert torch.equal(got.margin, zeros + INF)
    assert torch.equal(got.prediction, targets)
    assert got.correct.all()
    assert got.gradients is not None
    assert torch.equal(got.gradients, torch.zeros_like(logits))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_cols", [1, 2, 9, 2 * _TILE])
def test_rows_without_scores(n_cols, dtype, device):
    good = random((2, n_cols), dtype, device)[0]
    whole = torch.tensor([NAN, INF, -INF], dtype=dtype, device=device)[:, None].expand(-1, n_cols)
    spoilt = random((7, n_cols), dtype, device)[0]
    spoilt[0, 0] = spoilt[1, -1] = NAN
    spoilt[2, 0] = spoilt[3, -1] = INF
    spoilt[4] = -INF
    spoilt[4, n_cols // 2] = NAN
    spoilt[5, : n_cols // 2] = spoilt[6, n_cols // 2 :] = -INF
    spoilt[5, 0] = spoilt[6, -1] = NAN
    logits = torch.cat([good[:1], whole, spoilt, good[1:]])
    for target in {0, n_cols - 1, -1}:  # -1 is ignored, even where it is the prediction
        targets = torch.full((len(logits),), target, device=device)
        got = check(logits, targets, 0.1)
        assert got.prediction[1:-1].eq(-1).all()
        assert not got.correct[1:-1].any()
        for name in ("loss", "probability", "el2n", "margin", "entropy"):
            assert getattr(got, name)[1:-1].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impossible_classes(dtype, smoothing, device):
    rows = [[1, -INF, 0, 2], [-INF, -INF, 3, -INF], [-INF, 1, 1, -INF], [0, -1, -2, -INF]]
    logits = torch.tensor(rows, dtype=dtype, device=device)
    for target in range(4):
        got = check(logits, torch.full((4,), target, device=device), smoothing)
        impossible = logits[:, target] == -INF
        assert torch.equal(got.loss.isinf(), impossible | (smoothing > 0))
        assert torch.equal(got.probability == 0, impossible)
        assert torch.equal(got.margin == -INF, impossible)
        assert not got.correct[impossible].any()
    assert logit_scores(logits, torch.tensor([0, 2, 0, 0], device=device)).margin[1] == INF


IGNORED = [-100, -1, -(2**63), 5, 6, 2**31, 2**32, 2**62, 2**63 - 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore_index", [-100, 2, 0, 1, -1, 2**62, 5])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_ignored_targets(layout, ignore_index, smoothing, device):
    targets = torch.tensor([*range(5), *IGNORED], device=device)
    logits = random((len(targets), 5), device=device)[0]
    x = logits if layout == "contiguous" else LAYOUTS[layout](logits)
    got = check(x, targets, smoothing, ignore_index, values=logits)
    # What does not depend on the target is found all the same.
    assert torch.equal(got.prediction, logits.argmax(1))
    assert got.entropy.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_gradients_are_the_derivatives_of_cross_entropy(ignore_index, smoothing, device):
    logits, targets = random((23, 7), torch.float64, device)
    targets = targets.where(targets >= 0, ignore_index)
    got = logit_scores(
        logits,
        targets,
        label_smoothing=smoothing,
        ignore_index=ignore_index,
        with_gradients=True,
    )
    within = tolerance(torch.float64, logits)
    for i, (x, y) in enumerate(zip(logits, targets, strict=True)):
        x.requires_grad_()
        loss = cross_entropy(
            x, y, label_smoothing=smoothing, ignore_index=ignore_index, reduction="sum"
        )
        assert got.gradients is not None
        # Its entries are sums of terms no larger than 1.
        (want,) = torch.autograd.grad(loss, x)
        assert_close(got.gradients[i], want, rtol=0, atol=within["rtol"])
        if y != ignore_index:
            assert_close(got.loss[i], loss.detach(), **within)


def test_gradients_only_if_asked_for():
    logits, targets = random((4, 5))
    with_gradients = logit_scores(logits, targets, with_gradients=True)
    without_gradients = logit_scores(logits, targets)
    assert without_gradients.gradients is None
    assert_close(without_gradients[:-1], with_gradients[:-1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(70, 33), (1031, 2), (5, 2 * _TILE + 1)], ids=str)
def test_bits_depend_on_nothing_but_the_row(shape, dtype, device):
    logits, targets = random(shape, dtype, device)
    scores = logit_scores(logits, targets, label_smoothing=0.1, with_gradients=True)
    again = logit_scores(logits, targets, label_smoothing=0.1, with_gradients=True)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0)).to(device)
    permuted = logit_scores(logits[order], targets[order], label_smoothing=0.1, with_gradients=True)
    for one, same, moved in zip(scores, again, permuted, strict=True):
        assert one is not None
        assert_close(same, one, rtol=0, atol=0, equal_nan=True)
        assert_close(moved, one[order], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("shape", [(5, 1), (513, 1), (33, 10), (9, 129), (2, _TILE + 9)], ids=str)
def test_every_logit_is_read_once_and_nothing_beyond(shape, layout, traffic):
    reads, writes = traffic
    logits, targets = random(shape)
    if layout == "transposed":
        logits = LAYOUTS[layout](logits)
    got = logit_scores(logits, targets)

    # The logit of a target, where it is a class, is read a second time.
    want = Counter(
        logits.data_ptr() + 4 * (row * logits.stride(0) + col * logits.stride(1))
        for row, target in enumerate(targets.tolist())
        for col in [*range(shape[1]), *([target] if target >= 0 else [])]
    )
    want.update(targets.data_ptr() + 8 * row for row in range(len(targets)))
    assert Counter(reads) == want
    want = Counter(one.data_ptr() + 4 * row for one in got[:5] for row in range(len(targets)))
    want.update(got.prediction.data_ptr() + 8 * row for row in range(len(targets)))
    assert Counter(writes) == want


@pytest.mark.parametrize("gradients", [False, True])
def test_nothing_of_float64_logits_is_computed_in_float32(aot, gradients):
    logits, targets = torch.empty(8, 10, dtype=torch.float64), torch.empty(8, dtype=torch.int64)
    with aot.compile_only(aot.TARGETS["sm_80"]) as kernels:
        _logit_scores_triton(logits, targets, 0.1, -100, gradients)
    assert [re.findall(r"\bf32\b", kernel.asm["ttir"]) for kernel in kernels] == [[]]


def test_input_is_left_alone():
    logits, targets = random((5, 4))
    before = logits.clone(), targets.clone()
    for one in logit_scores(logits, targets, label_smoothing=0.1, with_gradients=True):
        assert one is not None
        one.fill_(1)
    assert torch.equal(logits, before[0])
    assert torch.equal(targets, before[1])


def test_which_code_runs_on_the_cpu(monkeypatch):
    module = importlib.import_module("memtools_kernels.logit_scores")
    name = "logit_scores_reference" if INTERPRET else "_logit_scores_triton"
    monkeypatch.setattr(module, name, None)
    assert logit_scores(torch.zeros(2, 4), torch.tensor([0, 1])).probability.tolist() == [0.25] * 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("shape", [(4, 33), (0, 3), (3, 1)], ids=str)
def test_opcheck(shape, gradients, device):
    for dtype in (torch.bfloat16, torch.float64):
        logits, targets = random(shape, dtype, device)
        targets = targets.clamp_min(0)  # NaN would not be equal to NaN
        torch.library.opcheck(_logit_scores_op, (logits, targets, 0.1, -100, gradients))
        torch.library.opcheck(_logit_scores_op, (logits.mT.contiguous().mT, targets, 0.0, 7, False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_device(dtype):
    logits = torch.empty(3, 4, dtype=dtype, device="meta")
    targets = torch.empty(3, dtype=torch.int64, device="meta")
    got = logit_scores(logits, targets, with_gradients=True)
    want: dict[str, Any] = dict.fromkeys(LogitScores._fields, ((3,), accumulator(dtype), "meta"))
    want |= {"prediction": ((3,), torch.int64, "meta"), "correct": ((3,), torch.bool, "meta")}
    want["gradients"] = ((3, 4), dtype, "meta")
    found = {
        name: one if one is None else (tuple(one.shape), one.dtype, one.device.type)
        for name, one in got._asdict().items()
    }
    assert found == want
    assert logit_scores(logits, targets).gradients is None


@pytest.mark.parametrize(
    ("in_dims", "gradients"),
    [*itertools.product([(0, 0), (1, 1), (2, 1), (1, None)], [True, False])],
)
def test_vmap(in_dims, gradients):
    def scores(logits, targets):
        got = logit_scores(logits, targets, label_smoothing=0.1, with_gradients=gradients)
        return got if gradients else got[:-1]  # `vmap` has no room for None

    logits = random((3, 3, 3), torch.float64)[0]
    targets = torch.tensor([[0, 1, 2], [1, -100, 0], [2, 2, 5]])
    targets = targets[0] if in_dims[1] is None else targets
    got = vmap(scores, in_dims)(logits, targets)
    each = [targets] * 3 if in_dims[1] is None else targets.unbind(in_dims[1])
    want = [scores(*one) for one in zip(logits.unbind(in_dims[0]), each, strict=True)]
    for found, true in zip(got, zip(*want, strict=True), strict=True):
        assert_close(found, torch.stack(true), equal_nan=True)


def test_vmap_over_targets_alone():
    logits, targets = random((3, 4))[0], torch.tensor([[0, 1, 2], [3, -100, 0]])
    got = vmap(lambda targets: logit_scores(logits, targets, with_gradients=True))(targets)
    want = [logit_scores(logits, one, with_gradients=True) for one in targets]
    for found, true in zip(got, zip(*want, strict=True), strict=True):
        assert_close(found, torch.stack(true), equal_nan=True)


def test_nested_vmap():
    logits, targets = random((2, 3, 4, 5))
    targets = targets.clamp_min(0)

    def losses(logits, targets):
        return logit_scores(logits, targets).loss

    got = vmap(vmap(losses))(logits, targets)
    want = cross_entropy(logits.flatten(0, 2), targets.flatten(), reduction="none")
    assert_close(got, want.view(2, 3, 4))
    got = vmap(vmap(losses, in_dims=(0, None)), in_dims=(None, 0))(logits[0], targets[0])
    want = [[losses(x, y) for x in logits[0]] for y in targets[0]]
    assert_close(got, torch.stack([torch.stack(row) for row in want]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradients", [False, True])
def test_compiled(gradients, device):
    torch.compiler.reset()
    compiled = torch.compile(logit_scores, fullgraph=True, backend="aot_eager")
    for n, smoothing, ignore_index in [(3, 0.0, 1), (4, 0.1, -100), (7, 0.2, 1), (4, 0.2, 0)]:
        logits, targets = random((n, 5), device=device)
        options = {"label_smoothing": smoothing, "ignore_index": ignore_index}
        got = compiled(logits, targets, **options, with_gradients=gradients)
        want = logit_scores(logits, targets, **options, with_gradients=gradients)
        assert isinstance(got, LogitScores)
        for found, true in zip(got, want, strict=True):
            assert_close(found, true, rtol=0, atol=0, equal_nan=True)


def test_compiled_on_outputs_of_transforms():
    def losses(weight, inputs, targets):
        logits = vmap(grad(lambda x: (weight * x).sin().sum()))(inputs)
        return logit_scores(logits, targets).loss

    torch.compiler.reset()
    inputs, targets = random((6, 5))
    weight = torch.linspace(-2, 2, 5)
    compiled = torch.compile(losses, fullgraph=True, backend="inductor")
    assert_close(compiled(weight, inputs, targets), losses(weight, inputs, targets), equal_nan=True)


TYPES = "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("error", "logits", "targets", "options", "message"),
    [
        *(
            (
                ValueError, torch.zeros(shape), torch.zeros(shape[:1], dtype=torch.int64), {},
                f"logits must have shape (n, C) with at least one class, got {shape}; flatten all "
                "other dimensions into the first",
            )
            for shape in [(), (3,), (2, 0), (2, 3, 4)]
        ),
        *(
            (
                TypeError, torch.ones(2, 2, dtype=dtype), torch.zeros(2, dtype=torch.int64), {},
                f"logits must be {TYPES}, got {dtype}; pass logits.float()",
            )
            for dtype in [torch.int64, torch.complex64, torch.bool]
        ),
        *(
            (
                ValueError, torch.ones(2, 2), torch.zeros(shape, dtype=torch.int64), {},
                f"targets must have shape (2,), one for each row of logits, got {shape}",
            )
            for shape in [(), (3,), (2, 2), (2, 1)]
        ),
        *(
            (
                TypeError, torch.ones(2, 2), torch.zeros(2, dtype=dtype, device=device), {},
                f"targets must be torch.int64 on cpu, got {dtype} on {device}; pass "
                "targets.to(logits.device).long()",
            )
            for dtype, device in [(torch.int32, "cpu"), (torch.int64, "meta")]
        ),
        *(
            (
                ValueError, torch.ones(2, 2), torch.zeros(2, dtype=torch.int64),
                {"label_smoothing": smoothing},
                f"label_smoothing must be from 0 to 1, got {smoothing}",
            )
            for smoothing in [-0.1, 1.1, NAN, INF]
        ),
    ],
)  # fmt: skip
def test_errors(error, logits, targets, options, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        logit_scores(logits, targets, **options)


@pytest.mark.parametrize("derive", [lambda f, x: jvp(f, (x,), (x,)), lambda f, x: jacfwd(f)(x)])
def test_no_forward_derivative(derive):
    logits, targets = random((3, 4))
    message = (
        "logit_scores has no forward-mode derivative, got logits with a tangent; pass "
        "logits.detach(), or use torch.nn.functional.cross_entropy inside the function"
    )
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"):
        derive(lambda x: logit_scores(x, targets).loss, logits)


def test_detached_under_forward_differentiation():
    logits, targets = random((3, 4))
    value, tangent = jvp(
        lambda x: logit_scores(x.detach(), targets).loss + x[:, 0], (logits,), (logits,)
    )[:2]
    assert_close(value, logit_scores(logits, targets).loss + logits[:, 0])
    assert_close(tangent, logits[:, 0])


@pytest.mark.parametrize("name", ["loss", "probability", "el2n", "margin", "entropy", "gradients"])
def test_no_backward_derivative(name):
    logits, targets = random((3, 4))
    scores = logit_scores(logits.requires_grad_(), targets, with_gradients=True)
    with pytest.raises(RuntimeError, match=r"backward through memtools.logit_scores.*no autograd"):
        getattr(scores, name).sum().backward()


@pytest.mark.skipif(INTERPRET, reason="the interpreter is a part of Triton")
def test_without_triton():
    code = """
        import sys
        sys.modules["triton"] = None
        import torch
        from memtools_kernels import logit_scores
        print(logit_scores(torch.zeros(2, 4), torch.tensor([0, 1])).probability.tolist())
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "[0.25, 0.25]\n"), run.stderr
