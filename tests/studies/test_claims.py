"""Verdicts on made-up numbers."""

import math

import numpy as np
import pytest

from memtools.studies.claims import (
    class_claims,
    diagonal_contrast,
    gini_claims,
    judge,
    off_diagonal,
)
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL

ONE_SIGN = [0.1, 0.2, 0.3, 0.2]


def test_a_verdict_is_where_the_whole_interval_is():
    assert judge("C", "s", ONE_SIGN).verdict == "holds"
    assert judge("C", "s", np.negative(ONE_SIGN)).verdict == "does not hold"
    assert judge("C", "s", [-0.1, 0.2, 0.3, 0.2]).verdict == "undecided"
    assert judge("C", "s", [0.0, 0.0, 0.0]).verdict == "undecided"


def test_the_interval_is_students():
    verdict = judge("C", "s", ONE_SIGN)
    # t of 3 degrees of freedom at 97.5%, from a table.
    reach = 3.18245 * np.std(ONE_SIGN, ddof=1) / 2
    assert verdict.effect == pytest.approx(0.2)
    assert verdict.low == pytest.approx(0.2 - reach, rel=1e-5)
    assert verdict.high == pytest.approx(0.2 + reach, rel=1e-5)
    assert verdict.n == 4


@pytest.mark.parametrize("effects", [[0.1, 0.2, 0.3], [0.1], [0.1, math.nan]])
def test_a_verdict_says_of_what_it_is(effects):
    verdict = judge("C", "s", effects, about="dropout")
    assert (verdict.claim, verdict.statement, verdict.about) == ("C", "s", "dropout")
    assert judge("C", "s", effects).about == ""


def test_one_seed_decides_nothing():
    verdict = judge("C", "s", [5.0])
    assert (verdict.verdict, verdict.effect) == ("undecided", 5.0)
    assert (verdict.low, verdict.high, verdict.n) == (None, None, 1)


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_a_seed_without_a_number_is_not_left_out_in_silence(undefined):
    verdict = judge("C", "s", [0.1, undefined, 0.1])
    assert (verdict.verdict, verdict.n) == ("undecided", 2)
    assert (verdict.effect, verdict.low, verdict.high) == (None, None, None)


@pytest.mark.parametrize("effects", [[], [[1.0, 2.0]]])
def test_effects_are_one_number_per_seed(effects):
    with pytest.raises(ValueError, match="one number per seed"):
        judge("C", "s", effects)


def test_gini_claims_pair_the_seeds():
    real = np.array([0.5, 0.7, 0.9])
    noise = {"random-inputs-100": real - 0.1, "random-labels-100": real + 0.1}
    ginis = {"classes": {"real": real, **noise}, "own-class": {"real": real, **noise}}
    verdicts = list(gini_claims(ginis))
    assert [v.verdict for v in verdicts] == ["holds", "holds", "does not hold"]
    assert [v.claim for v in verdicts] == ["C2", "C2", "ours"]
    assert [v.effect for v in verdicts] == pytest.approx([0.1, 0.1, -0.1])
    assert [v.statement for v in verdicts] == [
        f"more unequal on real data than with {noise} (difference of Gini coefficients)"
        for noise in (
            f"{RANDOM_INPUTS.title}, usual classes",
            f"{RANDOM_INPUTS.title}, every example its own class",
            f"{RANDOM_LABELS.title}, usual classes",
        )
    ]
    ginis["own-class"] = {key: 1 - values for key, values in ginis["classes"].items()}
    assert [v.effect for v in gini_claims(ginis)] == pytest.approx([0.1, -0.1, -0.1])


def matrix(diagonal: float, others: float) -> np.ndarray:
    return np.full((4, 4), others) + np.eye(4) * (diagonal - others)


def test_class_claims():
    matrices = {
        "real": np.stack([matrix(2, 1), matrix(2, 1.1)]),
        "random-labels-100": np.stack([matrix(2, 0.1), matrix(2, 0.11)]),
        "random-inputs-100": np.stack([matrix(1, 3), matrix(1, 3.1)]),
    }
    verdicts = list(class_claims(matrices))
    assert [v.verdict for v in verdicts] == [
        "holds",
        "holds",
        "does not hold",
        "does not hold",
        "holds",
    ]
    assert {v.claim for v in verdicts} == {"C3"}
    off = [0.525, 0.0525, 3.05]  # mean over the seeds, over the diagonal
    assert [v.effect for v in verdicts[3:]] == pytest.approx([off[0] - off[2], off[0] - off[1]])
    contrasts = (REAL.title, RANDOM_LABELS.title, RANDOM_INPUTS.title)
    assert [v.statement for v in verdicts] == [
        *(f"diagonal above off-diagonal, {title} (mean log ratio)" for title in contrasts),
        *(
            f"more off the diagonal on real data than with {noise.title} "
            "(difference of off-diagonal over diagonal)"
            for noise in (RANDOM_INPUTS, RANDOM_LABELS)
        ),
    ]


def test_contrast_and_share_by_hand():
    values = np.array([[4.0, 1.0, 2.0], [1.0, 2.0, 1.0], [3.0, 1.0, 8.0]])
    diagonal, others = [4.0, 2.0, 8.0], [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]
    expected = np.log(diagonal).mean() - np.log(others).mean()
    assert diagonal_contrast(values) == pytest.approx(expected)
    assert off_diagonal(values) == pytest.approx(np.mean(others) / np.mean(diagonal))
    # Neither depends on the unit.
    assert diagonal_contrast(1e-9 * values) == pytest.approx(expected)
    assert off_diagonal(1e-9 * values) == pytest.approx(off_diagonal(values))


def test_a_class_without_examples_is_left_out():
    whole = np.array([[4.0, 1.0], [1.0, 2.0]])
    lacking = np.array([[4.0, math.nan, 1.0], [0.0, math.nan, 0.0], [1.0, math.nan, 2.0]])
    assert diagonal_contrast(lacking) == diagonal_contrast(whole)
    assert off_diagonal(lacking) == off_diagonal(whole)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, 3)),
        np.array([[1.0, math.nan], [1.0, 1.0]]),
        np.array([[1.0, math.inf], [1.0, 1.0]]),
        np.array([[1.0, -1.0], [1.0, 1.0]]),
        np.array([[1.0, math.nan], [0.0, math.nan]]),
        np.full((2, 2), math.nan),
    ],
    ids=["zeros", "nan", "inf", "negative", "one class", "no class"],
)
def test_what_cannot_be_compared_is_nan_not_a_number(values):
    assert math.isnan(diagonal_contrast(values))
    assert math.isnan(off_diagonal(values))


def test_no_share_of_a_diagonal_of_zeros():
    assert math.isnan(off_diagonal([[0.0, 1.0], [1.0, 0.0]]))


def test_half_precision_is_summed_in_float64():
    values = np.array([[4.0, 0.1, 0.2], [0.3, 2.0, 0.1], [0.3, 0.7, 8.0]], dtype=np.float16)
    assert diagonal_contrast(values) == diagonal_contrast(values.astype(np.float64))
    assert off_diagonal(values) == off_diagonal(values.astype(np.float64))
    assert judge("C", "s", values[1]) == judge("C", "s", values[1].astype(np.float64))


def test_a_zero_has_a_share_but_no_logarithm():
    values = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert math.isnan(diagonal_contrast(values))
    assert off_diagonal(values) == 2
    values = np.array([[1.0, 0.0], [0.5, 1.0]])
    assert math.isnan(diagonal_contrast(values))
    assert off_diagonal(values) == 0.25
