"""The sensitivity study, run small but whole, through its command line."""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import memtools
from memtools import cli
from memtools.data import Tensors, in_memory, load, random_inputs, random_labels
from memtools.models import TinyMLP
from memtools.report.figures.sensitivity import FIGURES
from memtools.seeds import seeded
from memtools.studies.cells import Cell
from memtools.studies.conditions import RANDOM_INPUTS, RANDOM_LABELS, REAL
from memtools.studies.sensitivity import Config, cells, prepare, run, summarise
from memtools.studies.sensitivity.experiment import train_on
from memtools.training import TapeRecorder, Trainer

SMALL = ["--train-size", "40", "--epochs", "3", "--width", "5", "--batch-size", "10"]
TINY = Config(train_size=20, epochs=1, width=3, seeds=(0,))
TRAININGS = [
    ("classes", "real"),
    ("classes", "random-labels-100"),
    ("classes", "random-inputs-100"),
    ("own-class", "real"),
    ("own-class", "random-inputs-100"),
]


def command(out: Path, *more: str) -> list[str]:
    return ["study", "sensitivity", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_folder_holds_what_is_promised(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["study"] == "sensitivity"
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    names = {f"{task}-{key}-seed{seed}" for task, key in TRAININGS for seed in (0, 3)}
    assert {path.stem for path in (folder / "examples").iterdir()} == names
    of_classes = {name for name in names if name.startswith("classes")}
    assert {path.stem for path in (folder / "matrices").iterdir()} == of_classes
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics", "examples", "matrices", "figures", "report.html", "summary.json",
        "verdicts.json",
    }  # fmt: skip


def test_one_line_of_metrics_for_each_training_and_evaluation_time(rows):
    # Every second epoch, and the last.
    expected = [
        (task, key, seed, epoch, 4 * epoch)
        for seed in (0, 3)
        for task, key in TRAININGS
        for epoch in (2, 3)
    ]
    names = ("task", "condition", "seed", "epoch", "updates")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)
    for row in rows:
        for name in ("train_accuracy", "gini_of_running_mean", "gini_instantaneous"):
            assert 0 <= row[name] <= 1
        assert row["mean_sensitivity"] > 0


@pytest.mark.parametrize(("task", "key"), TRAININGS)
def test_numbers_are_those_of_the_public_functions(task, key, folder, rows):
    """The same training by hand: scaled, standardised, noise put in, recorded, differentiated."""
    small = load("digits", train_size=40, validation_size=1).train
    images = torch.nn.functional.interpolate(in_memory(small).inputs, (14, 14), mode="bilinear")
    data = Tensors(images, in_memory(small).targets)
    if key == "random-labels-100":
        data = in_memory(random_labels(data, seed=3, num_classes=10))
    if key == "random-inputs-100":
        data = in_memory(random_inputs(data, seed=3))
    inputs = (data.inputs - images.mean()) / images.std()
    targets = torch.arange(40) if task == "own-class" else data.targets
    with seeded(3, "weights"):
        model = TinyMLP((1, 14, 14), 40 if task == "own-class" else 10, width=5)
    recorder = TapeRecorder()
    rate = 0.15 if task == "own-class" else 0.1
    results = Trainer(
        model,
        partial(torch.optim.SGD, lr=rate),
        epochs=3,
        batch_size=10,
        seed=3,
        device="cpu",
        callbacks=[recorder],
    ).fit(Tensors(inputs, targets))
    assert recorder.tape is not None
    norms = memtools.loss_sensitivity(recorder.tape, (inputs, targets), at=[8, 12])
    found = [r for r in rows if (r["task"], r["condition"], r["seed"]) == (task, key, 3)]
    running = [norms[0], norms.mean(0)]
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    close([r["mean_sensitivity"] for r in found], norms.mean(1))
    close([r["gini_instantaneous"] for r in found], memtools.gini(norms))
    close([r["gini_of_running_mean"] for r in found], [memtools.gini(v) for v in running])
    assert [r["train_accuracy"] for r in found] == [r.train_accuracy for r in results[1:]]
    table = pq.read_table(folder / "examples" / f"{task}-{key}-seed3.parquet").to_pydict()
    close(table["loss_sensitivity"], norms.mean(0))
    assert table["label"] == targets.tolist()
    assert table["clean_label"] == in_memory(small).targets.tolist()
    assert table["is_corrupted"] == data.is_corrupted.tolist()
    assert table["prediction"] == model(inputs).argmax(1).tolist()
    if task == "classes":
        matrix = np.loadtxt(folder / "matrices" / f"{task}-{key}-seed3.csv", delimiter=",")
        expected = memtools.per_class_loss_sensitivity(
            recorder.tape, (inputs, targets), at=[8, 12], num_classes=10
        )
        close(matrix, expected)


def test_inputs_are_of_the_papers_size_and_their_noise_like_the_data():
    data = prepare(TINY)
    assert data.train.inputs.shape == (20, 1, 14, 14)
    assert 0 <= data.train.inputs.min() < data.train.inputs.max() <= 1
    for cell in cells(TINY):
        train = train_on(TINY, data, cell)
        assert abs(float(train.inputs.mean())) < 0.1
        assert abs(float(train.inputs.std()) - 1) < 0.1
        is_real = cell.values["condition"] != RANDOM_INPUTS.key
        assert torch.equal(train.inputs, train_on(TINY, data, Cell(REAL, 0)).inputs) == is_real
    raw = Config(train_size=20, standardize=False)
    assert torch.equal(train_on(raw, data, Cell(REAL, 0, "classes")).inputs, data.train.inputs)


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        assert verdict["statement"] in page


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [v["claim"] for v in verdicts] == ["C2", "C2", "ours", "C3", "C3", "C3", "C3", "C3"]
    assert all(v["n"] == 2 for v in verdicts)
    last = {(r["task"], r["condition"], r["seed"]): r for r in rows if r["epoch"] == 3}
    differences = [
        last["own-class", "real", seed]["gini_of_running_mean"]
        - last["own-class", "random-inputs-100", seed]["gini_of_running_mean"]
        for seed in (0, 3)
    ]
    assert verdicts[1]["effect"] == pytest.approx(np.mean(differences))


MOMENTS = [1, 3, 11, 21]


def test_killed_again_and_again_and_resumed_ends_in_the_same_folder(
    folder, tmp_path, contents, killed
):
    out = tmp_path / "killed"
    for moment in MOMENTS:
        killed(moment, command(out, "--resume"))
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def lose_an_examples_file(folder: Path) -> None:
    (folder / "examples" / "own-class-real-seed0.parquet").unlink()


def lose_a_matrix(folder: Path) -> None:
    (folder / "matrices" / "classes-random-labels-100-seed0.csv").unlink()


def tear_a_line(folder: Path) -> None:
    metrics = folder / "metrics" / "classes-real-seed0.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])


def spoil_a_line(folder: Path) -> None:
    metrics = folder / "metrics" / "own-class-real-seed0.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch"', "epoch", 2))


@pytest.mark.parametrize(
    "damage", [lose_an_examples_file, lose_a_matrix, tear_a_line, spoil_a_line]
)
def test_what_is_lost_is_made_anew(damage, tmp_path, contents):
    run(TINY, tmp_path / "run")
    whole = contents(tmp_path / "run")
    damage(tmp_path / "run")
    run(TINY, tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_training_that_diverges_says_so(tmp_path, capsys):
    words = [*command(tmp_path / "run"), "--learning-rate", "1e6"]
    assert cli.main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "diverged" in line
    assert "lower the learning rate" in line
    assert str(tmp_path / "run") in line


def test_a_derivative_that_diverges_says_so(monkeypatch, tmp_path):
    norms = torch.full((1, 20), float("inf"))
    monkeypatch.setattr(
        "memtools.studies.sensitivity.experiment.loss_sensitivity", lambda *_, **__: norms
    )
    with pytest.raises(FloatingPointError, match=r"derivative .* diverged \(classes, real labels"):
        run(TINY, tmp_path / "run")
    assert list((tmp_path / "run" / "examples").iterdir()) == []


def test_constant_inputs_are_refused_before_anything_is_written(monkeypatch, tmp_path):
    split = load("digits", train_size=20, validation_size=1)
    split.train.inputs.zero_()  # type: ignore[union-attr]
    monkeypatch.setattr("memtools.studies.data.load", lambda *_, **__: split)
    with pytest.raises(ValueError, match="standardize needs inputs that differ"):
        run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    """One seed, classes without examples, and one moment that outweighs all others."""
    config = Config(train_size=12, epochs=3, every=1, width=3, seeds=(0,))
    data = prepare(config)
    finished = run(config, tmp_path / "run", data=data)
    rows = finished.rows()
    for row in rows:
        is_last = row["epoch"] == 3
        row["mean_sensitivity"] = 8.0 if is_last and row["condition"] == "real" else 1.0
    rewrite(tmp_path / "run", rows)
    summary = summarise(finished, config, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "classes, real labels (80%); own-class, real inputs (80%)" in text["Caution"]
    _, verdicts = summary.tables
    assert {row[2] for row in verdicts.rows} == {"undecided"}
    assert {row[4] for row in verdicts.rows} == {""}
    path = tmp_path / "run" / "matrices" / "classes-real-seed0.csv"
    np.savetxt(path, np.zeros((10, 10)), delimiter=",")
    text = dict(s.split(": ", 1) for s in summarise(finished, config, data).sentences)
    assert "that class (not defined)" in text["Classes"]


def test_evaluation_times_end_with_the_last_epoch():
    assert Config(epochs=5, every=2).evaluated() == [2, 4, 5]
    assert Config(epochs=1, every=4).evaluated() == [1]
    assert len(Config().evaluated()) == 20


def test_conditions_leave_out_random_labels_where_labels_are_replaced():
    found = [(cell.task, cell.values["condition"]) for cell in cells(Config(seeds=(7,)))]
    assert found == TRAININGS
    assert ("own-class", RANDOM_LABELS.key) not in found
