"""Several studies in one command and on one page, and options that every study has."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from memtools import cli
from memtools.report.joined import FinishedRun, claims_in_words, read_runs
from memtools.studies import STUDIES, sweep
from memtools.studies.claims import Verdict
from memtools.studies.csr import Config as CsrConfig
from memtools.studies.mislabels import Config

TINY = [
    "--train-size", "60", "--validation-size", "20", "--epochs", "2", "--width", "4",
    "--folds", "2", "--fold-epochs", "1", "--seeds", "0", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("all") / "runs"
    words = ["--quick", "--only", "mislabels", "sensitivity", "--processes", "2"]
    assert cli.main(["study", "all", *words, "--out", str(out)]) == 0
    return out


def test_all_runs_each_study_in_a_folder_of_its_own(whole):
    assert {path.name for path in whole.iterdir()} == {
        "mislabels-digits", "sensitivity-digits", "report.html",
    }  # fmt: skip
    for name in ("mislabels", "sensitivity"):
        folder = whole / f"{name}-digits"
        settings = json.loads((folder / "config.json").read_text())["settings"]
        expected = STUDIES[name].Config.suited("quick").as_json()
        assert settings == expected
        assert (folder / "report.html").exists()


def test_joined_page_has_every_claim_study_and_setting_and_needs_no_other_file(whole):
    page = (whole / "report.html").read_text()
    inside = {f"#{name}" for name in re.findall(r'id="([^"]*)"', page)}
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert inside <= set(links)
    assert all(link.startswith("data:image/") or link in inside for link in links)
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    for name in ("mislabels", "sensitivity"):
        folder = whole / f"{name}-digits"
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["question"] == STUDIES[name].QUESTION
        assert summary["question"].replace("'", "&#39;") in page
        for sentence in summary["sentences"]:
            topic = sentence.split(": ", 1)[0]
            assert f"<strong>{topic}:</strong>" in page
        for verdict in json.loads((folder / "verdicts.json").read_text()):
            assert verdict["statement"].split(" (")[0] in page
        for setting in json.loads((folder / "config.json").read_text())["settings"]:
            assert setting == "data_dir" or f"<td>{setting}</td>" in page
    assert page.index("What became of the claims") < page.index(STUDIES["sensitivity"].QUESTION)


def test_claims_count_the_verdicts_of_each_study(whole):
    runs = read_runs([whole])
    assert [run.title for run in runs] == ["sensitivity, digits", "mislabels, digits"]
    lines = {line.split(":")[0]: line for line in claims_in_words(runs)}
    assert list(lines) == ["C2", "C3", "ours"]
    assert "mislabels" not in lines["C2"]
    assert "mislabels, digits" in lines["ours"]


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["holds"], "holds"),
        (["undecided"], "undecided"),
        (["holds"] * 3, "all 3 hold"),
        (["does not hold"] * 2, "none of 2 holds"),
        (["undecided"] * 2, "all 2 undecided"),
        (["undecided", "holds", "does not hold", "holds"], "2 hold, 1 do not, 1 undecided"),
        (["does not hold", "holds"], "1 hold, 1 do not"),
    ],
)
def test_verdicts_in_words(verdicts, words, tmp_path):
    made = [Verdict("C2", "more", verdict, None, None, None, 3) for verdict in verdicts]
    other = Verdict("C3", "less", "holds", 1.0, 0.5, 1.5, 3)
    config = {"study": "sensitivity", "settings": {"dataset": "digits"}}
    run = FinishedRun(tmp_path, config, {}, [other, *made])
    line = next(line for line in claims_in_words([run]) if line.startswith("C2"))
    assert line.endswith(f"sensitivity, digits: {words}")


def test_all_goes_on_where_it_was_and_refuses_a_folder_that_is_not_empty(whole, capsys, contents):
    words = ["study", "all", "--quick", "--only", "mislabels", "sensitivity", "--out", str(whole)]
    before = contents(whole)
    assert cli.main(words) == 2
    assert "add --resume" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert contents(whole) == before


def test_report_takes_run_folders_and_says_what_is_no_run(whole, tmp_path, capsys):
    page = tmp_path / "page.html"
    one = str(whole / "mislabels-digits")
    assert cli.main(["report", one, "--out", str(page)]) == 0
    assert STUDIES["mislabels"].QUESTION in page.read_text()
    assert STUDIES["sensitivity"].QUESTION not in page.read_text()
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_unknown_studies_are_named(tmp_path, capsys):
    assert cli.main(["study", "all", "--only", "nope", "--out", str(tmp_path / "runs")]) == 2
    assert "nope" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_config_of_a_run_runs_it_again(tmp_path, contents):
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli.main(["study", "mislabels", *TINY, "--out", str(first)]) == 0
    config = ["--config", str(first / "config.json")]
    assert cli.main(["study", "mislabels", *config, "--out", str(second)]) == 0
    assert contents(second) == contents(first)
    third = tmp_path / "third"
    assert cli.main(["study", "mislabels", *config, "--width", "5", "--out", str(third)]) == 0
    settings = [json.loads((p / "config.json").read_text())["settings"] for p in (first, third)]
    assert settings[1] == settings[0] | {"width": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no config.json of a run"),
        ('{"study": "csr", "settings": {}}', "of the study csr, not of mislabels"),
        ('{"study": "mislabels", "settings": {"size": 1}}', "another version of memtools"),
    ],
)
def test_a_config_that_cannot_be_used(content, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    words = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    assert cli.main(["study", "mislabels", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sizes_are_defaults_that_what_is_given_overrides():
    assert CsrConfig.suited("quick").train_size == CsrConfig.quick["train_size"]
    assert CsrConfig.suited("quick", train_size=7).train_size == 7
    assert CsrConfig.suited("full", dataset="mnist").width == 4096
    for study in STUDIES.values():
        for size in ("quick", "full"):
            assert study.Config.suited(size, dataset="mnist") is not None


def test_processes_of_torchrun_share_the_trainings_and_end_in_the_same_files(tmp_path, contents):
    config = Config.suited(
        train_size=60, validation_size=20, epochs=2, width=4, folds=2, fold_epochs=1, seeds=(0, 1)
    )
    sweep(config, tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = tmp_path / "shared"
    words = ["-m", "memtools", "study", "mislabels", *TINY, "--out", str(out)]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert ["Report: " in words for words in said] == [True, False]
    shared = contents(out)
    assert {name: shared[name] for name in contents(tmp_path / "alone")} == contents(
        tmp_path / "alone"
    )


@pytest.mark.parametrize("processes", ["0", "-1"])
def test_number_of_processes_is_checked(processes, tmp_path, capsys):
    words = [*TINY, "--processes", processes, "--out", str(tmp_path / "run")]
    assert cli.main(["study", "mislabels", *words]) == 2
    assert "processes must be at least 1" in capsys.readouterr().err


def test_an_error_in_another_process_is_that_of_the_command(tmp_path, capsys):
    words = [*TINY, "--learning-rate", "1e9", "--processes", "2", "--out", str(tmp_path / "run")]
    assert cli.main(["study", "mislabels", *words]) == 2
    assert "diverge" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_a_stranger_is_shown_as_text_or_refused_in_a_line(whole, tmp_path, capsys):
    secret = tmp_path / "secret.svg"
    secret.write_text("<svg>secret</svg>")
    words = "<script>alert(1)</script>{{ 7 * 7 }}[/b]"

    def changed(name, **values):
        folder = tmp_path / name
        shutil.copytree(whole / "mislabels-digits", folder)
        for file, change in values.items():
            path = folder / f"{file}.json"
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return cli.main(["report", str(folder), "--out", str(tmp_path / f"{name}.html")])

    def hostile(config):
        settings = config["settings"] | {"dataset": words, words: words}
        return config | {"settings": settings, "device": words, "versions": {words: words}}

    def spoken(summary):
        return summary | {"question": words, "sentences": [f"{words}: {words}"]}

    assert changed("escaped", config=hostile, summary=spoken) == 0
    page = (tmp_path / "escaped.html").read_text()
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page
    capsys.readouterr()
    for name, values in {
        "unknown": {"config": lambda config: config | {"study": words}},
        "outside": {"summary": lambda s: s | {"figures": [["../../secret", "title", "caption"]]}},
        "topic": {"summary": lambda s: s | {"sentences": ["no topic"]}},
        "number": {"summary": lambda s: s | {"figures": 5}},
        "other": {"config": lambda config: [config]},
        "nothing": {"summary": lambda s: {}},
    }.items():
        assert changed(name, **values) == 2, name
        assert capsys.readouterr().err.count("\n") == 1, name
        assert not (tmp_path / f"{name}.html").exists(), name
