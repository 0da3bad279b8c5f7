"""What the README promises, done as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import blocks, pages

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def readme_tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import readme

    return readme


BLOCKS = [block.code for block in blocks(ROOT / "README.md") if block.language == "python"]
OTHERS = ("lightning", "transformers")


def test_drop_in_code_runs_as_written(tmp_path):
    plain = [block for block in BLOCKS if not any(f"import {name}" in block for name in OTHERS)]
    code = "\n".join(plain)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert re.fullmatch(r"Gini coefficient of the sensitivity: 0\.\d\d", lines[5])


@pytest.mark.parametrize("name", OTHERS)
def test_code_for_other_libraries_is_on_a_page_whose_code_runs(name):
    (code,) = [block for block in BLOCKS if f"import {name}" in block]
    shown = [block.code for page in pages() for block in blocks(page)]
    assert code in shown


@pytest.mark.parametrize(
    "file", ["README.md", "bench/README.md", "kernels/README.md", "docs/studies.md"]
)
def test_tables_are_those_that_the_kept_results_give(readme_tool, file):
    assert readme_tool.refreshed(ROOT / file) == (ROOT / file).read_text()


def test_figures_show_the_kept_results(readme_tool):
    for tool in (
        readme_tool,
        readme_tool.gradient_norms_report,
        readme_tool.sensitivity_report,
        readme_tool.growth_report,
    ):
        assert tool.digest() in tool.FIGURE.read_text()


def test_commands_name_options_that_exist():
    help_text = "--nproc-per-node of torchrun, --dist of pytest-xdist"
    for command in (["study", "memorization"], ["study", "all"], ["score"]):
        words = [sys.executable, "-m", "memtools", *command, "--help"]
        help_text += subprocess.run(words, capture_output=True, text=True).stdout
    for option in re.findall(r"(?<!-)--[a-z][a-z-]*", README):
        assert option in help_text


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    (pattern,) = re.findall(r"grep -E '(.*?)' README.md", script)
    commands = [line for line in README.splitlines() if re.search(pattern, line)]
    assert len(commands) == 1
    assert "-m pytest -q" in commands[0]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
