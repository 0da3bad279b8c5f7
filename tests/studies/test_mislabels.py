"""The study of wrong labels, run small but whole, through its command line."""

import json
from dataclasses import fields

import numpy as np
import pytest

from memtools import Ledger, cli
from memtools.data import in_memory, load, random_labels
from memtools.report.figures.mislabels import FIGURES
from memtools.studies.folder import read_parquet
from memtools.studies.mislabels import Config, prepare, summarise
from memtools.studies.mislabels.methods import METHODS, auroc, precision

SMALL = [
    "--train-size", "60", "--validation-size", "20", "--epochs", "4", "--width", "8",
    "--batch-size", "10", "--folds", "3", "--fold-epochs", "2",
]  # fmt: skip


def command(out, *more):
    return ["study", "mislabels", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def table_of(folder, seed):
    return read_parquet(folder / "examples" / f"wrong-labels-seed{seed}.parquet")


def is_wrong(table):
    return np.not_equal(table["label"], table["clean_label"])


def test_every_wrong_label_is_wrong_and_there_are_as_many_as_asked_for(folder):
    train = in_memory(load("digits", train_size=60, validation_size=20).train)
    for seed in (0, 3):
        table = table_of(folder, seed)
        noisy = in_memory(random_labels(train, 0.1, mode="other", seed=seed, num_classes=10))
        assert table["label"] == noisy.targets.tolist()
        assert table["clean_label"] == train.targets.tolist()
        assert is_wrong(table).sum() == 6


def pairs(values, wrong):
    """How often a wrong one ranks above a right one, ties half."""
    above = [(a > b) + (a == b) / 2 for a in values[wrong] for b in values[~wrong]]
    return float(np.mean(above))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "confident_learning"])
def test_areas_are_shares_of_pairs(folder, method):
    table = table_of(folder, 3)
    wrong = is_wrong(table)
    values = METHODS[method].sign * np.array(table[METHODS[method].column])
    assert auroc(table, method, wrong) == pytest.approx(pairs(values, wrong))
    worst = sorted(range(60), key=lambda i: (-values[i], i))[:6]
    assert precision(table, method, wrong) == wrong[worst].mean()


def test_lines_are_what_the_ledger_knew_at_each_epoch(folder, rows):
    for seed in (0, 3):
        ledger = Ledger.load(folder / "ledgers" / f"wrong-labels-seed{seed}.parquet")
        wrong = is_wrong(table_of(folder, seed))
        lines = [row for row in rows if row["seed"] == seed]
        assert [row["epoch"] for row in lines] == [1, 2, 3, 4]
        for row in lines:
            history = ledger.history("loss")[:, : row["epoch"]]
            expected = pairs(history.astype(np.float64).sum(1).astype(np.float32), wrong)
            assert row["auroc_csl"] == pytest.approx(expected)
            assert row["auroc_last_loss"] == pytest.approx(pairs(history[:, -1], wrong))


def test_confident_learning_is_that_of_cleanlab(folder):
    pytest.importorskip("cleanlab")
    table = table_of(folder, 0)
    quality = np.array(table["label_quality"])
    assert quality.min() >= 0
    assert quality.max() <= 1
    # With thresholds of the classes taken off, the order within a class is that of probability.
    for label in set(table["label"]):
        members = np.equal(table["label"], label)
        held_out = np.array(table["held_out_confidence"])[members]
        assert (np.argsort(held_out)[:1] == np.argsort(quality[members])[:1]).all()


def test_a_run_that_was_killed_ends_in_the_same_files(folder, tmp_path, killed, contents):
    out = tmp_path / "run"
    killed(9, command(out))
    assert not (out / "report.html").exists()
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_report_and_table_show_every_score(folder, check_page, capsys):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    config = json.loads((folder / "config.json").read_text())["settings"]
    assert set(config) == {f.name for f in fields(Config)}
    assert not {"radius", "csr_steps"} & set(config)
    for method, (title, column, _) in METHODS.items():
        if column in table_of(folder, 0):
            assert f"<td>{title}</td>" in page, method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.0}, "noise must lie between 0 and 1, got 1.0"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"fold_epochs": 0}, "fold_epochs must be at least 1, got 0"),
        ({"noise": 0.001, "train_size": 50}, "noise 0.001 of 50 examples makes 0 labels wrong"),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**options))


def test_summary_reads_the_folder_again(folder):
    from memtools.studies.folder import RunFolder

    config = json.loads((folder / "config.json").read_text())["settings"]
    config = Config(**config)
    opened = RunFolder.open(folder, "mislabels", config.as_json(), "cpu")
    outcomes = summarise(opened, config, prepare(config)).outcomes
    assert outcomes.areas["csl"].shape == (2,)
    assert outcomes.areas["csl"][1] == auroc(
        table_of(folder, 3), "csl", is_wrong(table_of(folder, 3))
    )
