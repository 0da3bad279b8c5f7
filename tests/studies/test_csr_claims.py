"""Verdicts on made-up curves of critical samples and accuracy."""

import math

import numpy as np
import pytest

from memtools.studies.csr.claims import (
    csr_claims,
    learning_claims,
    per_seed,
    rank_correlation,
    turns,
)
from memtools.studies.csr.conditions import CONDITIONS

EPOCHS = np.array([1.0, 3, 5, 7, 9, 11, 13])
JITTER = 0.01 * np.array([-1.0, 0, 1])[:, None]
"""What differs from seed to seed, and does not change from epoch to epoch."""


def seeds_of(values) -> np.ndarray:
    return np.asarray(values, dtype=float) + JITTER


def curves(noise_share: float) -> dict[str, np.ndarray]:
    """A condition of which everything that the paper claims is true."""
    high = 0.1 + 0.5 * noise_share
    return {
        "epoch": np.tile(EPOCHS, (3, 1)),
        "csr_validation": seeds_of(high * np.array([0.2, 0.6, 0.9, 0.97, 1, 1, 1])),
        "csr_train": seeds_of(high * np.array([0.2, 0.6, 1.0, 0.8, 0.6, 0.4, 0.2])),
        "train_accuracy": seeds_of([0.2, 0.4, 0.5, 0.6, 0.9, 1, 1]),
        "validation_accuracy": seeds_of([0.2, 0.6, 0.8, 0.7, 0.6, 0.5, 0.4]),
    }


def as_claimed() -> dict[str, dict[str, np.ndarray]]:
    return {c.key: curves(c.labels + c.inputs) for c in CONDITIONS}


def found(verdicts, part: str, about: str) -> str:
    (verdict,) = [v for v in verdicts if part in v.statement and v.about == about]
    return verdict.verdict


def test_all_holds_where_all_is_as_claimed():
    verdicts = [*csr_claims(as_claimed()), *learning_claims(as_claimed())]
    assert [v.claim for v in verdicts] == ["C6"] * 16 + ["C7"] * 12
    # JITTER is the same in all curves: the training curve of real data rises by 0.08 in all.
    assert {v.verdict for v in verdicts if "rises first" not in v.statement} == {"holds"}
    assert len({(v.statement, v.about) for v in verdicts}) == len(verdicts)


def test_nothing_holds_where_it_is_the_other_way_round():
    """Curves upside down: what rose falls."""
    other = {
        key: {name: v if name == "epoch" else 1 - v for name, v in of.items()}
        for key, of in as_claimed().items()
    }
    verdicts = list(csr_claims(other))
    about = "all labels random"
    for part in ("ends higher", "rises over", "less and less", "rises first"):
        assert found(verdicts, part, about) == "does not hold", part
    assert found(verdicts, "share of noise", "random inputs") == "does not hold"


def test_what_only_rises_neither_turns_nor_levels_off():
    rising = as_claimed()
    for of_condition in rising.values():
        line = seeds_of(EPOCHS / 20)
        of_condition |= {"csr_train": line, "validation_accuracy": line, "csr_validation": line}
    verdicts = [*csr_claims(rising), *learning_claims(rising)]
    assert found(verdicts, "rises first", "real labels") == "holds"
    assert found(verdicts, "then falls (at its", "real labels") == "does not hold"
    assert [v.effect for v in verdicts if "less and less" in v.statement] == pytest.approx(
        [0, 0, 0]
    )
    assert found(verdicts, "accuracy then falls", "20% random labels") == "does not hold"
    # From the place where it might have turned to the end.
    assert found(verdicts, "while it falls", "20% random labels") == "holds"


def test_what_only_falls_does_not_rise_first():
    falling = as_claimed()
    for of_condition in falling.values():
        of_condition["csr_train"] = seeds_of(1 - EPOCHS / 20)
    verdicts = list(csr_claims(falling))
    assert found(verdicts, "rises first", "real labels") == "does not hold"
    assert found(verdicts, "then falls (at its", "real labels") == "holds"


def test_pure_chance_is_no_turn():
    """The highest point of a noisy flat curve lies above its end in nearly every seed."""
    flat, n = np.random.default_rng(0), 2000
    values = flat.normal(size=(n, 5, len(EPOCHS)))
    own = values.max(2) - values[..., -1]
    assert own.mean() > 1
    epochs = np.tile(EPOCHS, (5, 1))
    ours = np.array([per_seed(v, turns({"epoch": epochs, "v": v}, "v")) - v[:, -1] for v in values])
    assert abs(ours.mean()) < 0.05


def test_the_turning_point_is_that_of_the_other_seeds():
    values = np.zeros((3, 7))
    values[0, 1], values[1, 2], values[2, 3] = 1, 3, 2
    assert turns({"epoch": np.tile(EPOCHS, (3, 1)), "v": values}, "v") == [2, 3, 2]
    alone = {"epoch": EPOCHS[None], "v": values[:1]}
    assert turns(alone, "v") == [1]


@pytest.mark.parametrize("epochs", [[1.0], [1.0, 2.0]])
def test_too_few_epochs_decide_nothing(epochs):
    """Neither a turning point nor a first and a last third."""
    short = {
        key: {name: values[:, : len(epochs)] for name, values in of.items()}
        for key, of in as_claimed().items()
    }
    verdicts = list(csr_claims(short))
    for part in ("less and less", "rises first", "then falls"):
        assert found(verdicts, part, "real labels") == "undecided"


def test_rank_correlation_by_hand():
    assert rank_correlation([0, 0.2, 0.4], [1, 2, 30]) == pytest.approx(1)
    assert rank_correlation([0, 0.2, 0.4], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([0, 0.2, 0.4], [1, 3, 2]) == pytest.approx(0.5)
    assert math.isnan(rank_correlation([0, 0.2, 0.4], [1, 1, 1]))
