"""What ``memtools doctor`` says of a machine, and that it notices wrong numbers."""

import memtools_kernels
import pytest
import torch

from memtools.cli import main
from memtools.doctor import checks, diagnose, installed


def states(findings):
    return {f"{f.part}: {f.name}": f.state for f in findings}


def test_a_good_installation_passes_every_check(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    for name in checks.CHECKS:
        assert name in printed
    assert "all checks passed" in printed


def test_every_operator_is_named_and_checked():
    (finding,) = installed.operators(torch.device("cpu"))
    tensor_functions = [name for name in memtools_kernels.__all__ if name[0].islower()]
    assert all(name in finding.words for name in tensor_functions)
    # Noise is part of box_step, and has no exact answer to be compared with.
    checked = ", ".join(checks.CHECKS).split(", ")
    assert set(tensor_functions) - {"box_noise"} <= set(checked)


@pytest.mark.parametrize("operator", ["row_norms", "outer_norms", "logit_scores", "gini"])
def test_a_wrong_number_is_noticed(operator, monkeypatch, capsys):
    right = getattr(memtools_kernels, operator)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if operator == "logit_scores":
            return result._replace(el2n=result.el2n * 1.001)
        return result * 1.001

    monkeypatch.setattr(checks.kernels, operator, wrong)
    assert main(["doctor", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert f"! {operator} " in printed
    assert "1 check failed" in printed


def test_a_missing_extra_is_told_with_its_command(monkeypatch):
    found = installed._version
    monkeypatch.setattr(
        installed, "_version", lambda name: None if name == "jinja2" else found(name)
    )
    (study,) = (f for f in installed.extras() if f.name == "study")
    assert study.state == "missing"
    assert "jinja2" in study.words
    assert 'pip install "memtools[study]"' in study.words


def test_an_unknown_device_is_refused_in_a_line(capsys):
    assert main(["doctor", "--device", "abacus"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "abacus" in message


def test_it_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert "failed" not in states(diagnose("cpu")).values()
    assert torch.equal(torch.get_rng_state(), before)
