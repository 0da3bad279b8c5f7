"""No public function without a property test."""

import importlib
import re
from pathlib import Path

import pytest

PUBLIC = [
    "memtools",
    "memtools.data",
    "memtools.metrics",
    "memtools.models",
    "memtools.pruning",
    "memtools.scores",
    "memtools.training",
    "memtools_kernels",
]
# Results, which nobody else builds, and what only hands on what it is given.
ELSEWHERE = {
    "Callback", "CriticalSearch", "EpochResult", "Evaluation", "GradientNorms", "LogitScores",
    "Memorization", "Noisy", "Run", "Split", "TapeRecorder",
    # Refusals of these have tests of their own: tests/training, tests/test_scores_of_models.py.
    "Trainer", "evaluate", "memorization", "resolve_device", "variance_of_gradients",
    # By the names that `models.build` knows them by.
    "MLP", "SmallAlexNet", "TinyMLP",
}  # fmt: skip


def text_of_tests() -> str:
    files = Path(__file__).parent.glob("*.py")
    return "\n".join(file.read_text() for file in files if file != Path(__file__))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_called_by_a_property(name):
    if name == "memtools.metrics":
        pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    module, text = importlib.import_module(name), text_of_tests()
    public = {n for n in module.__all__ if callable(getattr(module, n))} - ELSEWHERE
    assert [n for n in sorted(public) if not re.search(rf"\b{n}\b", text)] == []


def test_what_is_left_out_exists():
    public = {n for name in PUBLIC for n in vars(importlib.import_module(name))}
    assert public >= ELSEWHERE
