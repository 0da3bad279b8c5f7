"""What someone at a terminal sees when a word is wrong."""

import json
import sys
from dataclasses import fields

import pytest
from PIL import Image

from memtools import cli
from memtools.studies import STUDIES


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; exit code and lines on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, list[str]]:
        try:
            code = cli.main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err.splitlines()

    return run


BAD = {
    "--dataset nope": ["dataset", "nope", "fashion-mnist"],
    "--dataset mnist": ["MNIST", "data", "--data-dir", "--download"],
    "--dataset mnist --data-dir missing": ["data_dir", "missing", "not a folder"],
    "--dataset cifar10": ["CIFAR-10", "--download"],
    "--dataset folder --data-dir .": ["one folder for each class"],
    "--train-size 99999": ["train_size", "99999", "1438"],
    "--validation-size 0": ["validation_size", "0"],
    "--width 0": ["width", "0", "at least 1"],
    "--width many": ["--width", "many"],
    "--epochs 0": ["epochs", "0"],
    "--seeds 1 1": ["seeds", "[1, 1]"],
    "--model vgg": ["model", "vgg", "mlp"],
    "--dropout 1": ["dropout", "1"],
    "--learning-rate 0": ["learning_rate", "positive"],
    "--momentum -1": ["momentum", "-1"],
    "--label-noise some": ["label_noise", "uniform", "some"],
    "--radius -1": ["radius", "-1"],
    "--model small-alexnet --width 4 --train-size 65": ["batch_size 64", "65"],
    "--device cuda:99": ["device", "cuda:99", "cpu"],
    "--device banana": ["device", "banana", "cpu"],
    "--precision int8": ["precision", "int8", "bfloat16"],
    "--train-size 9": ["9 training", "at least 10"],
    "--seeds 99999999999999999999": ["seeds", "2**63"],
    "--device meta": ["device", "meta", "cpu"],
    "--width 100000000": ["width 100000000"],
    "--nonsense": ["--nonsense", "--help"],
}


BAD_FOR_SENSITIVITY = {
    "--dataset nope": ["dataset", "nope", "fashion-mnist"],
    "--dataset mnist": ["MNIST", "data", "--data-dir", "--download"],
    "--dataset folder --data-dir .": ["one folder for each class"],
    "--train-size 9": ["9 training", "at least 10"],
    "--train-size 99999": ["train_size", "99999", "1438"],
    "--width 0": ["width", "at least 1"],
    "--width 100000000000": ["width 100000000000"],
    "--every 0": ["every", "at least 1"],
    "--epochs 0": ["epochs", "0"],
    "--seeds 1 1": ["seeds", "[1, 1]"],
    "--own-class-learning-rate nan": ["own_class_learning_rate", "positive"],
    "--precision bfloat16": ["precision", "float32, float64", "bfloat16"],
    "--input-statistics some": ["input_statistics", "channel", "some"],
    "--device cuda:99": ["device", "cuda:99", "cpu"],
    "--momentum 0.9": ["--momentum", "--help"],
}


BAD_FOR_CSR = {
    "--dataset nope": ["dataset", "nope", "fashion-mnist"],
    "--dataset mnist": ["MNIST", "data", "--data-dir", "--download"],
    "--train-size 9": ["9 training", "at least 10"],
    "--validation-size 99999": ["validation_size", "99999"],
    "--width 100000000": ["width 100000000"],
    "--every 0": ["every", "at least 1"],
    "--radius 0": ["radius", "positive"],
    "--csr-steps 0": ["csr_steps", "at least 1"],
    "--csr-examples 0": ["csr_examples", "at least 1"],
    "--search best": ["search", "lass", "best"],
}


@pytest.mark.parametrize(
    ("study", "words", "parts"),
    [
        (study, words, parts)
        for study, bad in {
            "memorization": BAD,
            "sensitivity": BAD_FOR_SENSITIVITY,
            "csr": BAD_FOR_CSR,
        }.items()
        for words, parts in bad.items()
    ],
    ids=str,
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_left_behind(
    study, words, parts, outcome, tmp_path
):
    code, lines = outcome("study", study, *words.split())
    assert code == 2
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_unknown_study_and_missing_command(outcome):
    for words in (["study", "nope"], ["study"], []):
        code, lines = outcome(*words)
        assert code == 2
        assert len(lines) == 1


def test_a_run_folder_that_cannot_be_used(outcome, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for out in ("file", "full", "file/below"):
        code, lines = outcome("study", "memorization", "--out", out)
        assert code == 2
        assert len(lines) == 1
        assert out in lines[0]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(outcome, tmp_path):
    small = ["--train-size", "30", "--epochs", "1", "--width", "4", "--seeds", "0", "--out", "run"]
    assert outcome("study", "memorization", *small)[0] == 0
    page = (tmp_path / "run" / "report.html").stat().st_mtime_ns
    code, lines = outcome("study", "memorization", *small)
    assert code == 2
    assert "--resume" in lines[0]
    code, lines = outcome("study", "memorization", "--out", "run", "--resume", "--epochs", "2")
    assert code == 2
    assert "epochs 1, got 2" in lines[0]
    assert (tmp_path / "run" / "report.html").stat().st_mtime_ns == page
    assert outcome("study", "memorization", "--out", "run", "--resume")[0] == 0


def test_a_run_of_one_study_is_not_resumed_by_another(outcome, tmp_path):
    (tmp_path / "run").mkdir()
    config = {"study": "sensitivity", "settings": {}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for more in ([], ["--resume"]):
        code, lines = outcome("study", "memorization", "--out", "run", *more)
        assert code == 2
        assert len(lines) == 1
        assert "a run of the study sensitivity" in lines[0]


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("module", ["jinja2", "matplotlib", "pyarrow", "rich", "sklearn"])
def test_without_the_extra_it_says_how_to_install_it(study, module, outcome, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    code, lines = outcome("study", study, "--train-size", "20", "--epochs", "2")
    assert code == 2
    assert lines == [f'memtools: {module} is not installed; run: pip install "memtools[study]"']
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_says_so(outcome):
    words = "--learning-rate 1e6 --epochs 2 --seeds 0 --train-size 100 --width 8 --out run"
    code, lines = outcome("study", "memorization", *words.split())
    assert code == 2
    assert "diverge" in lines[-1]
    assert "run" in lines[-1]


def test_a_folder_of_images(outcome, tmp_path):
    for number in range(40):
        folder = tmp_path / "images" / ("<b>ö&", "two")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        mode = ("RGB", "L", "RGBA")[number % 3]
        Image.new(mode, (5 + number, 9), number * 5).save(folder / f"{number}.png")
    words = "--dataset folder --data-dir images --image-size 8 --epochs 1 --seeds 0 --out run"
    code, _ = outcome("study", "memorization", *words.split())
    assert code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;b&gt;ö&amp;" in page
    assert "<b>ö&" not in page
    (tmp_path / "images" / "two" / "broken.png").write_bytes(b"no image")
    code, lines = outcome("study", "memorization", *words.split(), "--out", "again")
    assert code == 2
    assert "broken.png" in lines[0]
    assert not (tmp_path / "again").exists()


def test_version_and_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("memtools ")
    for name, study in STUDIES.items():
        with pytest.raises(SystemExit, match="0"):
            cli.main(["study", name, "--help"])
        help_text = capsys.readouterr().out
        for setting in fields(study.Config):
            assert "--" + setting.name.replace("_", "-") in help_text
