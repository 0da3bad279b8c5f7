"""``memtools score`` as someone at a terminal sees it."""

import json
from pathlib import Path

import pytest

from memtools import cli
from memtools.scoring import SCORES, read
from tests.scoring import factories

FILE = str(Path(factories.__file__).resolve())
MODEL, DATA = ["--model", f"{FILE}:model"], ["--data", f"{FILE}:data"]
SMALL = ["--scores", "loss", "--batch-size", "2", "--chunk-size", "16"]


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; exit code and lines on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            code = cli.main(["score", *words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err.splitlines()

    return run


BAD = {
    "no model": (DATA, ["--model is missing", "package.module:function"]),
    "no data": (MODEL, ["--data is missing"]),
    "no colon": ([*DATA, "--model", "things"], ["model", "'things'", "path/to/file.py:function"]),
    "no file": ([*DATA, "--model", "no.py:model"], ["model", "no.py", "no file"]),
    "no module": ([*DATA, "--model", "no.such:model"], ["model", "no.such", "install"]),
    "no function": ([*DATA, "--model", f"{FILE}:nothing"], ["no function nothing"]),
    "no network": ([*DATA, "--model", f"{FILE}:no_model"], ["--model", "list", "torch.nn.Module"]),
    "stream": ([*MODEL, "--data", f"{FILE}:stream"], ["data", "map-style", "list_iterator"]),
    "other shape": ([*DATA, "--model", f"{FILE}:narrow_model"], ["RuntimeError", "shape"]),
    "score": ([*MODEL, *DATA, "--scores", "aum"], ["aum", "--help"]),
    "critical": ([*MODEL, *DATA, "--scores", "is_critical"], ["radius is missing"]),
    "radius": ([*MODEL, *DATA, "--radius", "wide"], ["--radius", "wide"]),
    "batch size": ([*MODEL, *DATA, "--batch-size", "0"], ["batch_size", "at least 1"]),
    "device": ([*MODEL, *DATA, "--device", "cuda:99"], ["device", "cuda:99", "cpu"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_2(kind, outcome):
    words, parts = BAD[kind]
    code, lines = outcome(*words, "--out", "out")
    assert code == 2
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
    assert not list(Path("out").glob("*.parquet"))


def test_a_run_is_resumed_when_asked_with_the_settings_it_has(outcome):
    code, lines = outcome(*MODEL, *DATA, *SMALL, "--out", "out")
    assert code == 0
    assert any("4 of 4 chunks" in line and "examples/s" in line for line in lines)
    assert list(read("out")) == ["index", "target", "loss"]
    code, lines = outcome(*MODEL, *DATA, *SMALL, "--out", "out")
    assert code == 2
    assert len(lines) == 1
    assert "holds scores already; add --resume" in lines[0]
    Path("out", "part-000002.parquet").unlink()
    code, lines = outcome(*MODEL, *DATA, "--out", "out", "--resume")
    assert code == 0
    assert any("1 of 1 chunks" in line for line in lines)
    code, lines = outcome(*MODEL, *DATA, "--out", "out", "--resume", "--batch-size", "8")
    assert code == 2
    assert "batch_size 2, got 8" in lines[0]
    code, lines = outcome(*MODEL, *DATA, "--out", "out", "--resume")
    assert code == 0
    assert "nothing left to do" in lines[0]


def test_a_file_that_is_edited_to_make_other_weights_is_refused(outcome):
    program = "import torch\n\ndef model():\n    torch.manual_seed({})\n"
    program += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))\n"
    Path("mine.py").write_text(program.format(0))
    words = ["--model", "mine.py:model", *DATA, *SMALL, "--out", "out"]
    assert outcome(*words)[0] == 0
    Path("mine.py").write_text(program.format(12))
    code, lines = outcome(*words, "--resume")
    assert code == 2
    assert "holds scores with weights" in lines[0]


def test_a_module_in_the_current_folder_is_found(outcome):
    Path("things_of_mine.py").write_text("from tests.scoring.factories import model, data\n")
    words = ["--model", "things_of_mine:model", "--data", "things_of_mine:data"]
    assert outcome(*words, *SMALL, "--out", "out")[0] == 0
    settings = json.loads(Path("out", "_about.json").read_text())["settings"]
    assert settings["model"] == "things_of_mine:model"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["score", "--help"])
    text = capsys.readouterr().out
    for word in ("--model", "--data", "--out", "--resume", "--radius", "--workers", *SCORES):
        assert word in text
