"""What the operators compute of numbers of any size, against exact fractions."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import memtools_kernels as kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.properties.softmax import scores_of
from tests.properties.tensors import FLOATS, any_number, batches, laid_out

ORDERS = st.sampled_from([1, 2, math.inf])


def exactly(tensor: Tensor) -> Any:
    """A tensor as nested lists of fractions."""
    if tensor.ndim == 0:
        return Fraction(float(tensor))
    return [exactly(part) for part in tensor.detach().double()]


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


@st.composite
def several(draw, *shapes: tuple[int, ...]):
    """Tensors of one dtype, and of like size: each is scaled by a power of two of its own."""
    dtype = draw(st.sampled_from(FLOATS))
    reach = int(math.log2(torch.finfo(dtype).max)) - 4
    found = []
    for shape in shapes:
        n, power = math.prod(shape), draw(st.sampled_from([0, 0, 0, reach // 4, -reach // 3]))
        numbers = draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n))
        values = [math.ldexp(number, power) for number in numbers]
        found.append(draw(laid_out(values, shape, dtype)))
    return found


def is_square(found: Tensor, exact: Fraction, terms: Fraction, parts: list[Fraction]) -> bool:
    """Whether a sum of products is right, or shows that it has overflowed.

    Args:
        found: The result.
        exact: What it should be.
        terms: Sum of the sizes of what was added up.
        parts: Squared norms of the factors, which must fit the dtype too.
    """
    about = torch.finfo(found.dtype)
    if not bool(found.isfinite()):
        return max([terms, *parts]) > Fraction(about.max) / 4
    # A product below the smallest normal number may have become 0, and then meets another factor.
    lost = Fraction(about.tiny) * 32 * (1 + sum(parts))
    return abs(Fraction(float(found)) - exact) <= 64 * Fraction(about.eps) * terms + lost


@settings(max_examples=300)
@given(batches(elements=any_number, columns=(0, 6)), ORDERS, st.booleans())
def test_row_norms(x, p, squared):
    found = kernels.row_norms(x, p, squared=squared)
    about = torch.finfo(found.dtype)
    assert found.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    for norm, row in zip(found, x.detach().double(), strict=True):
        if not bool(row.isfinite().all()):
            assert bool(norm.isnan()) if bool(row.isnan().any()) else float(norm) == math.inf
            continue
        sizes = [abs(Fraction(v)) for v in row.tolist()]
        # To the power of p, where it is exact: a root is none.
        power = 2 if p == 2 or squared else 1
        norm_to_p = sum(s**2 for s in sizes) if p == 2 else max(sizes, default=Fraction(0))
        norm_to_p = sum(sizes) if p == 1 else norm_to_p
        exact = norm_to_p**2 if squared and p != 2 else Fraction(norm_to_p)
        if not bool(norm.isfinite()):
            assert power == 2 or p == 1
            assert exact > Fraction(about.max) * (1 - 8 * Fraction(about.eps))
            continue
        value = Fraction(float(norm)) ** (2 if p == 2 and not squared else 1)
        lost = Fraction(about.tiny) * len(sizes) if power == 2 else 0
        assert abs(value - exact) <= 16 * Fraction(about.eps) * exact + lost


@settings(max_examples=150)
@given(batches(columns=(1, 6)))
def test_gini_of_rows(values):
    values = values.abs()
    together = kernels.gini(values)
    alone = torch.cat([kernels.gini(row[None]) for row in values])
    assert torch.equal(together, alone)
    for found, row in zip(together.tolist(), exactly(values), strict=True):
        n, ordered = len(row), sorted(row)
        spread = sum(v * (2 * i + 1 - n) for i, v in enumerate(ordered))
        exact = spread / (n * sum(row)) if sum(row) else Fraction(0)
        assert abs(Fraction(found) - exact) <= torch.finfo(together.dtype).eps + 8 * n * 2**-52


@st.composite
def examples_of(draw, *letters: str):
    """Tensors whose shapes are these letters, equal letters of equal size."""
    sizes = {letter: draw(st.integers(1, 3)) for letter in sorted(set("".join(letters)))}
    return draw(several(*(tuple(sizes[letter] for letter in shape) for shape in letters)))


@settings(max_examples=300)
@given(examples_of("nTR", "nTC"))
def test_outer_norms(drawn):
    for found, rows, columns in zip(kernels.outer_norms(*drawn), *map(exactly, drawn), strict=True):
        total = sum(
            sum(r[i] * c[j] for r, c in zip(rows, columns, strict=True)) ** 2
            for i, j in product(range(len(rows[0])), range(len(columns[0])))
        )
        parts = [sum((dot(v, v) for v in factor), Fraction(0)) for factor in (rows, columns)]
        assert is_square(found, Fraction(total), parts[0] * parts[1], parts)


@settings(max_examples=200)
@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2))
def test_patch_norms(data, kernel, stride, padding, dilation):
    positions, pixels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    images, vectors = data.draw(several((2, 2, pixels), (2, 3, positions)))
    found = kernels.patch_norms(
        images, vectors, kernel_size=(kernel,), stride=(stride,), padding=(padding,),
        dilation=(dilation,),
    )  # fmt: skip
    for square, image, vector in zip(found, exactly(images), exactly(vectors), strict=True):
        total = terms = Fraction(0)
        for channel, row, k in product(image, vector, range(kernel)):
            places = [t * stride + k * dilation - padding for t in range(positions)]
            seen = [channel[i] if 0 <= i < pixels else Fraction(0) for i in places]
            total += dot(seen, row) ** 2
            terms += dot([abs(v) for v in seen], [abs(v) for v in row]) ** 2
        parts = [sum((dot(v, v) for v in factor), Fraction(0)) for factor in (image, vector)]
        whole = parts[0] * parts[1] * positions * kernel
        assert is_square(square, total, whole, parts)


@settings(max_examples=200)
@given(examples_of("nTd"), st.data())
def test_lookup_norms(drawn, data):
    (gradients,) = drawn
    n, lookups, width = gradients.shape
    some = st.lists(st.integers(0, 2), min_size=n * lookups, max_size=n * lookups)
    indices = torch.tensor(data.draw(some)).view(n, lookups)
    found = kernels.lookup_norms(indices, gradients)
    for square, index, rows in zip(found, indices.tolist(), exactly(gradients), strict=True):
        sums = [
            sum((r[k] for i, r in zip(index, rows, strict=True) if i == v), Fraction(0))
            for v, k in product(range(3), range(width))
        ]
        sizes = [sum((abs(r[k]) for r in rows), Fraction(0)) for k in range(width)]
        terms = dot(sizes, sizes)
        assert is_square(square, dot(sums, sums), terms, [])


@settings(max_examples=200)
@given(examples_of("nSd", "nTV", "nTd"), st.data())
def test_lookup_dots(drawn, data):
    gradients, rows, _ = drawn
    n, lookups, _ = gradients.shape
    table = st.integers(0, rows.shape[2] - 1)
    some = data.draw(st.lists(table, min_size=n * lookups, max_size=n * lookups))
    indices = torch.tensor(some).view(n, lookups)
    found = kernels.lookup_dots(indices, *drawn)
    for value, index, g, r, c in zip(found, indices.tolist(), *map(exactly, drawn), strict=True):
        pairs = list(product(zip(index, g, strict=True), zip(r, c, strict=True)))
        exact = sum((row[i] * dot(column, one) for (i, one), (row, column) in pairs), Fraction(0))
        sizes = [
            (abs(row[i]), dot([abs(v) for v in column], [abs(v) for v in one]))
            for (i, one), (row, column) in pairs
        ]
        terms = sum((a * b for a, b in sizes), Fraction(0))
        assert is_square(value, exact, terms, [x for pair in sizes for x in pair])


@settings(max_examples=250)
@given(batches(), st.data(), st.sampled_from([0.0, 0.1, 1.0]))
def test_logit_scores(logits, data, smoothing):
    n, classes = logits.shape
    targets = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    found = kernels.logit_scores(logits, targets, label_smoothing=smoothing)
    about = torch.finfo(found.loss.dtype)
    for i, (row, y) in enumerate(
        zip(logits.detach().double().tolist(), targets.tolist(), strict=True)
    ):
        wanted = scores_of(row, y)
        if max(row) - min(row) > about.max:
            continue  # no number of that dtype, nor is what follows from it
        wanted["probability"] = wanted.pop("confidence")
        behind = math.fsum((scores_of(row, j)["loss"]) / classes for j in range(classes))
        wanted["loss"] = (1 - smoothing) * wanted["loss"] + smoothing * behind
        assert bool(found.correct[i]) == bool(wanted.pop("correctness"))
        assert int(found.prediction[i]) == row.index(max(row))
        for name, exact in wanted.items():
            if abs(exact) <= about.max:
                slack = 8 * (classes + 2) * about.eps * max(1.0, abs(exact))
                assert abs(float(getattr(found, name)[i]) - exact) <= slack, name


@settings(max_examples=150)
@given(batches(elements=any_number))
def test_logit_scores_of_what_is_no_number_are_none(logits):
    targets = torch.zeros(len(logits), dtype=torch.int64)
    found = kernels.logit_scores(logits, targets, with_gradients=True)
    values = logits.detach()
    bad = values.isnan().any(1) | (values == math.inf).any(1) | (values == -math.inf).all(1)
    assert torch.equal(found.prediction == -1, bad)
    assert found.gradients is not None
    for field in (found.loss, found.probability, found.el2n, found.margin, found.entropy):
        assert bool(field[bad].isnan().all())
    assert bool(found.gradients[bad].isnan().all())
    assert bool(found.gradients[~bad].isfinite().all())


@settings(max_examples=200)
@given(batches(any_number, rows=3, columns=(1, 4)), st.data(), st.booleans())
def test_box_steps_end_in_their_boxes(points, data, noisy):
    points = points.detach().contiguous().clone()
    n, d, dtype = *points.shape, points.dtype
    numbers = st.lists(any_number(dtype), min_size=n * d, max_size=n * d)
    low, high, gradients = (data.draw(laid_out(data.draw(numbers), (n, d), dtype)) for _ in "lhg")
    unit, sizes = torch.tensor(0.25), torch.arange(n) + 0.5
    keys = steps = torch.arange(n)
    others = {"noise": torch.tensor(0.5), "keys": keys, "steps": steps} if noisy else {}
    before = points.double().clone()
    kernels.box_step(points, gradients, low, high, unit=unit, sizes=sizes, **others)
    after, low, high = (x.detach().double() for x in (points, low, high))
    signs = gradients.detach().double().sign().nan_to_num(0.0)
    moved = before + 0.25 * sizes[:, None].double() * signs
    if noisy:
        moved = moved + 0.5 * kernels.box_noise(keys, steps, d).double()
    wanted = torch.minimum(torch.maximum(moved, low), high)
    assert torch.equal(after.isnan(), wanted.isnan())
    known = ~wanted.isnan()
    assert bool((after <= high)[known].all())
    assert bool((after >= low)[known & (low <= high)].all())
    # Rounded in the accumulator's type for each term, and once to that of the points.
    eps = torch.finfo(dtype).eps
    reach = 4 * eps * (before.abs() + 0.25 * sizes[:, None] + 3)
    fits = known & (after.isfinite() & wanted.isfinite())
    assert bool(((after - wanted).abs() <= reach)[fits].all())
    assert torch.equal(after[known & ~fits], wanted[known & ~fits].to(dtype).double())
