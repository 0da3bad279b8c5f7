"""The study of critical samples, run small but whole, through its command line."""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import memtools
from memtools import cli
from memtools.data import in_memory, load, random_inputs, random_labels
from memtools.models import MLP
from memtools.report.figures.csr import FIGURES
from memtools.seeds import generator, seeded
from memtools.studies.csr import Config, cells, prepare, run, summarise
from memtools.studies.csr.conditions import CONDITIONS
from memtools.training import Callback, Trainer

SMALL = [
    "--train-size", "40", "--validation-size", "30", "--epochs", "5", "--every", "2",
    "--width", "6", "--batch-size", "10", "--csr-examples", "12", "--csr-steps", "3",
]  # fmt: skip
TINY = Config(train_size=20, validation_size=20, epochs=2, width=3, csr_examples=5, seeds=(0,))
KEYS = [
    "real",
    *(f"random-labels-{share}" for share in (20, 40, 60, 80, 100)),
    *(f"random-inputs-{share}" for share in (20, 40, 60, 80, 100)),
]


def command(out: Path, *more: str) -> list[str]:
    return ["study", "csr", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_folder_holds_what_is_promised(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["study"] == "csr"
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics", "figures", "report.html", "summary.json", "verdicts.json",
    }  # fmt: skip


def test_one_line_of_metrics_for_each_training_and_search(rows):
    # The first epoch, every second, and the last.
    expected = [
        (key, seed, epoch, 4 * epoch) for seed in (0, 3) for key in KEYS for epoch in (1, 2, 4, 5)
    ]
    names = ("condition", "seed", "epoch", "updates")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)
    for row in rows:
        for name in ("train_accuracy", "validation_accuracy", "csr_train", "csr_validation"):
            assert 0 <= row[name] <= 1


@pytest.mark.parametrize("key", ["real", "random-labels-60", "random-inputs-40"])
def test_numbers_are_those_of_the_public_functions(key, rows):
    """The same training by hand, searched around the same examples after each epoch."""
    split = load("digits", train_size=40, validation_size=30)
    train, validation = in_memory(split.train), in_memory(split.validation)
    if key == "random-labels-60":
        train = in_memory(random_labels(train, 0.6, seed=3, num_classes=10))
    if key == "random-inputs-40":
        train = in_memory(random_inputs(train, 0.4, seed=3))
    with seeded(3, "weights"):
        model = MLP((1, 8, 8), 10, width=6)
    drawn = {
        part: torch.randperm(len(data), generator=generator(0, "csr examples", part))[:12]
        for part, data in (("train", train), ("validation", validation))
    }
    found = []

    class Search(Callback):
        def on_epoch_end(self, run, result) -> None:
            ratios = [
                memtools.critical_sample_ratio(
                    model,
                    data.inputs[drawn[part]],
                    radius=1 / 32,
                    max_steps=3,
                    method=Config().search,
                    generator=generator(3, "csr", part, result.epoch),
                )
                for part, data in (("train", train), ("validation", validation))
            ]
            found.append((result.train_accuracy, *map(float, ratios)))

    Trainer(
        model,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        epochs=5,
        batch_size=10,
        seed=3,
        device="cpu",
        callbacks=[Search()],
    ).fit(train)
    names = ("train_accuracy", "csr_train", "csr_validation")
    lines = [row for row in rows if (row["condition"], row["seed"]) == (key, 3)]
    expected = [found[epoch - 1] for epoch in (1, 2, 4, 5)]
    assert [tuple(row[name] for name in names) for row in lines] == expected


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        assert f"<td>- {verdict['about']}</td>" in page
        assert verdict["statement"].split(" (")[0] in page


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [v["claim"] for v in verdicts] == ["C6"] * 16 + ["C7"] * 12
    last = {(r["condition"], r["seed"]): r for r in rows if r["epoch"] == 5}
    differences = [
        last["random-labels-100", seed]["csr_validation"] - last["real", seed]["csr_validation"]
        for seed in (0, 3)
    ]
    assert verdicts[0]["effect"] == pytest.approx(np.mean(differences))
    assert verdicts[0]["n"] == 2


# Lines, checkpoints and tables are to be on the disk one after the other.
MOMENTS = [2, 5, 14, 40]


def test_killed_again_and_again_and_resumed_ends_in_the_same_folder(
    folder, tmp_path, contents, killed
):
    out = tmp_path / "killed"
    for moment in MOMENTS:
        killed(moment, command(out, "--resume"))
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_a_finished_training_is_not_done_again_and_a_torn_line_is(tmp_path, contents):
    run(TINY, tmp_path / "run")
    whole = contents(tmp_path / "run")
    told: list[int] = []
    run(TINY, tmp_path / "run", progress=lambda line, epochs: told.append(epochs))
    assert told == [2] * len(cells(TINY))
    metrics = tmp_path / "run" / "metrics" / "real-seed0.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    run(TINY, tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    rows = finished.rows()
    for row in rows:
        is_real = row["condition"] == "real"
        row["train_accuracy"] = 1.0 if is_real else 0.5
        row["csr_validation"] = 1.0 if row["condition"] == "random-inputs-20" else 0.5
        row["csr_train"] = row["epoch"] / 10
        row["validation_accuracy"] = 0.8 if row["epoch"] == 1 else 0.3
    rewrite(tmp_path / "run", rows)
    summary = summarise(finished, TINY, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "100% of the training examples right with real labels, 50% with" in text["Fitting"]
    assert (
        "50%, 100%, 50%, 50%, 50%, 50% with 0, 20, 40, 60, 80 and 100% random inputs"
        in (text["Noise"])
    )
    assert "from 10% after the first epoch to 20% with real labels" in (text["Training examples"])
    assert "is best at epoch 1, 1, 1, 1 (80%, 80%, 80%, 80%)" in text["Memorising"]
    assert "real labels" not in text["Caution"]
    assert "80% random labels (50%)" in text["Caution"]
    assert "with 20% random inputs." in text["Caution on the box"]
    _, verdicts = summary.tables
    assert {row[2] for row in verdicts.rows if row[0].startswith("-")} == {"undecided"}  # one seed


def test_searches_come_after_the_first_and_the_last_epoch():
    assert Config(epochs=7, every=3).evaluated() == [1, 3, 6, 7]
    assert Config(epochs=1, every=4).evaluated() == [1]


def test_conditions_are_the_papers_shares_of_either_noise():
    assert [condition.key for condition in CONDITIONS] == KEYS
    assert [c.labels + c.inputs for c in CONDITIONS] == [0, *2 * [0.2, 0.4, 0.6, 0.8, 1]]
