"""The memorization study, run small but whole, through its command line."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from memtools import Ledger, cli, gini
from memtools.data import in_memory, load, random_labels
from memtools.report.figures.memorization import FIGURES
from memtools.studies import sweep
from memtools.studies.folder import RunFolder
from memtools.studies.memorization import Config, cells, prepare, run
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.summary import COLUMNS, summary_of
from memtools.studies.probes import Sizes

SMALL = [
    "--train-size", "120", "--validation-size", "60", "--epochs", "4", "--width", "16",
    "--csr-examples", "16", "--csr-steps", "3", "--seeds", "0", "3",
]  # fmt: skip


def command(out: Path, *more: str) -> list[str]:
    return ["study", "memorization", *SMALL, "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_config_holds_every_setting_versions_and_device(folder):
    config = json.loads((folder / "config.json").read_text())
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    assert config["settings"]["seeds"] == [0, 3]
    assert {"memtools", "python", "torch", "torchvision", "numpy"} <= set(config["versions"])
    assert config["device"].startswith("cpu")


def test_one_line_of_metrics_for_each_training_and_epoch(rows):
    expected = [
        (condition.key, seed, epoch)
        for seed in (0, 3)
        for condition in CONDITIONS
        for epoch in range(1, 5)
    ]
    assert sorted((r["condition"], r["seed"], r["epoch"]) for r in rows) == sorted(expected)
    for row in rows:
        for name in ("train_accuracy", "validation_accuracy", "csr_train", "csr_validation"):
            assert 0 <= row[name] <= 1
        assert (row["corrupted_accuracy"] is None) == (row["condition"] == "real")


def test_examples_carry_the_injected_noise_and_agree_with_the_ledger(folder):
    train = load("digits", train_size=120, validation_size=60).train
    noisy = in_memory(random_labels(train, 0.4, seed=3, num_classes=10))
    table = pq.read_table(folder / "examples" / "random-labels-40-seed3.parquet").to_pydict()
    assert table["label"] == noisy.targets.tolist()
    assert table["clean_label"] == in_memory(train).targets.tolist()
    assert table["is_corrupted"] == noisy.is_corrupted.tolist()
    ledger = Ledger.load(folder / "ledgers" / "random-labels-40-seed3.parquet")
    assert (ledger.presentations == 4).all()
    for name, values in ledger.scores().items():
        np.testing.assert_array_equal(values, np.array(table[name]))


def test_gini_of_the_running_mean_is_that_of_the_ledger(folder, rows):
    for condition in CONDITIONS:
        ledger = Ledger.load(folder / "ledgers" / f"{condition.key}-seed0.parquet")
        norms = ledger.history("input_gradient_norm")
        reported = [
            r["gini_of_running_mean"]
            for r in rows
            if (r["condition"], r["seed"]) == (condition.key, 0)
        ]
        expected = [float(gini(norms[:, :t].astype(np.float64).mean(1))) for t in range(1, 5)]
        np.testing.assert_allclose(reported, expected, rtol=1e-6)


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)


def test_same_settings_give_the_same_folder_byte_for_byte(folder, tmp_path, contents):
    assert cli.main(command(tmp_path / "again")) == 0
    assert contents(tmp_path / "again") == contents(folder)


def test_killed_at_five_random_moments_and_resumed_ends_in_the_same_folder(
    folder, tmp_path, contents
):
    out = tmp_path / "killed"
    program = [sys.executable, "-m", "memtools", *command(out, "--resume")]
    begin = time.monotonic()
    timed = [sys.executable, "-m", "memtools", *command(tmp_path / "timed")]
    subprocess.run(timed, check=True, capture_output=True)
    duration = time.monotonic() - begin
    moments = random.Random(0)
    kills = 0
    while kills < 5:
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=moments.uniform(0.3, 0.9) * duration)
            shutil.rmtree(out)  # it was faster than the kill: from the beginning
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    finished = subprocess.run(program, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert contents(out) == contents(folder)


def test_a_finished_training_is_not_done_again(folder, tmp_path, contents):
    config = Config.suited(train_size=50, validation_size=20, epochs=1, width=4, seeds=(0,))
    first = run(config, tmp_path / "run")
    done = contents(tmp_path / "run")
    del first
    epochs_by_line: list[int] = []
    run(config, tmp_path / "run", progress=lambda line, epochs: epochs_by_line.append(epochs))
    assert contents(tmp_path / "run") == done
    assert epochs_by_line == [1] * len(cells(config))


def lose_an_examples_file(folder: Path) -> None:
    (folder / "examples" / f"{CONDITIONS[1].key}-seed0.parquet").unlink()


def lose_a_ledger(folder: Path) -> None:
    (folder / "ledgers" / f"{CONDITIONS[0].key}-seed0.parquet").unlink()


def tear_the_last_line(folder: Path) -> None:
    metrics = folder / "metrics" / "real-seed0.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])


def spoil_a_line(folder: Path) -> None:
    metrics = folder / "metrics" / "random-labels-40-seed0.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch"', "epoch", 2))


def lose_all_lines(folder: Path) -> None:
    shutil.rmtree(folder / "metrics")


@pytest.mark.parametrize(
    "damage",
    [lose_an_examples_file, lose_a_ledger, tear_the_last_line, spoil_a_line, lose_all_lines],
)
def test_what_is_lost_is_made_anew(damage, tmp_path, contents):
    config = Config.suited(train_size=50, validation_size=20, epochs=2, width=4, seeds=(0,))
    run(config, tmp_path / "run")
    whole = contents(tmp_path / "run")
    damage(tmp_path / "run")
    run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_two_processes_share_the_work_and_end_in_the_same_files(folder, tmp_path, contents):
    pytest.importorskip("fcntl", reason="trainings are locked only where there is flock")
    out = tmp_path / "shared"
    told: list[tuple[str, int]] = []
    config = Config.suited(
        train_size=120, validation_size=60, epochs=4, width=16, csr_examples=16, csr_steps=3,
        seeds=(0, 3),
    )  # fmt: skip
    shared = sweep(config, out, processes=2, progress=lambda line, n: told.append((line, n)))
    done = {cell.title: sum(n for line, n in told if line == cell.title) for cell in cells(config)}
    assert set(done.values()) == {4}
    of_folder = {
        k: v for k, v in contents(folder).items() if k.startswith(("metr", "exam", "ledg"))
    }
    assert contents(out) == of_folder | {"config.json": contents(folder)["config.json"]}
    assert shared.rows() == RunFolder.open(folder, "memorization", config.as_json(), "cpu").rows()


def test_a_training_that_another_process_does_is_waited_for_and_not_done_again(tmp_path):
    pytest.importorskip("fcntl", reason="trainings are locked only where there is flock")
    config = Config.suited(train_size=50, validation_size=20, epochs=1, width=4, seeds=(0,))
    out = tmp_path / "run"
    first = run(config, out)
    lines = (out / "metrics" / "real-seed0.jsonl").read_bytes()
    (out / "metrics" / "real-seed0.jsonl").write_bytes(b"")
    told: list[str] = []
    with ThreadPoolExecutor(1) as other, first.log("real-seed0").locked(wait=True) as is_ours:
        assert is_ours
        done = other.submit(run, config, out, progress=lambda line, n: told.append(line))
        while len(told) < len(CONDITIONS) - 1:
            time.sleep(0.01)
        (out / "metrics" / "real-seed0.jsonl").write_bytes(lines)
        assert not done.done()
        assert "real labels, seed 0" not in told
    assert told[-1] == "real labels, seed 0"
    assert (out / "metrics" / "real-seed0.jsonl").read_bytes() == lines


def test_summary_says_no_more_than_the_numbers(folder, tmp_path, rewrite):
    """Where noise looks like real data, or better, no sentence claims the opposite."""
    config = Config.suited(train_size=50, validation_size=20, epochs=2, width=4, seeds=(0, 1))
    finished = run(config, tmp_path / "run")
    rows = finished.rows()
    for row in rows:
        real = row["condition"] == "real"
        row |= {"gini_of_running_mean": 0.1 if real else 0.5, "csr_validation": 0.9 if real else 0}
        row |= {"validation_accuracy": 0.5}
    rewrite(tmp_path / "run", rows)
    sizes = Sizes(held_out=20, searched=7, searched_train=9)
    summary = summary_of(finished, config, sizes, 50)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "than with random labels in 0 of 2 seeds" in text["Sensitivity"]
    assert "than with random inputs in 0 of 2 seeds" in text["Sensitivity"]
    assert "in 0 of 2 seeds with random labels" in text["Decision boundaries"]
    assert "of 7 held-out examples" in text["Decision boundaries"]
    assert "ends at 50%, its best being 50%" in text["Memorising"]
    (table,) = summary.tables
    assert len(table.rows) == len(CONDITIONS)
    assert all(len(row) == len(COLUMNS) for row in table.rows)


@pytest.mark.parametrize(
    ("accuracies", "course"),
    [
        ([0.5, 0.9, 0.2], "rises to 90% (epoch 2), then falls to 20%"),
        ([0.9, 0.5, 0.2], "falls from 90% (epoch 1) to 20%"),
        ([0.2, 0.9, 0.9], "rises to 90% (epoch 2) and ends at 90%"),
        ([0.5, 0.51, 0.5], "ends at 50%, its best being 51% (epoch 2)"),
    ],
)
def test_a_rise_and_a_fall_are_called_so_beyond_chance_only(accuracies, course, tmp_path, rewrite):
    config = Config.suited(train_size=50, validation_size=20, epochs=3, width=4, seeds=(0,))
    finished = run(config, tmp_path / "run")
    rows = finished.rows()
    for row in rows:
        row["validation_accuracy"] = accuracies[row["epoch"] - 1]
    rewrite(tmp_path / "run", rows)
    sizes = Sizes(held_out=2000, searched=20, searched_train=20)
    summary = summary_of(finished, config, sizes, 50)
    assert any(course in sentence for sentence in summary.sentences)


def test_a_run_is_not_continued_on_another_device_or_torch(tmp_path):
    config = Config.suited(train_size=50, validation_size=20, epochs=1, width=4, seeds=(0,))
    run(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config_before = path.read_text()
    for part, other in (('"device": "cpu', '"device": "cuda'), ('"torch": "', '"torch": "0.')):
        path.write_text(config_before.replace(part, other))
        with pytest.raises(ValueError, match="was made on "):
            run(config, tmp_path / "run")


def test_defaults_suit_the_data_set_and_are_all_explicit():
    assert Config.suited() == Config()
    assert Config.suited(dataset="mnist").train_size == 5000
    assert Config.suited(dataset="mnist", train_size=7).train_size == 7
    assert Config.suited(dataset="folder").train_size is None
    assert Config.suited(model="tiny-mlp").width == 16


@pytest.mark.parametrize(
    "settings",
    [{"model": "small-alexnet", "width": 4}, {"model": "tiny-mlp"}, {"dropout": 0.2}],
    ids=str,
)
def test_every_model_runs(settings, tmp_path):
    config = Config.suited(
        **settings, train_size=40, validation_size=20, epochs=1, seeds=(0,), csr_examples=4
    )
    assert len(run(config, tmp_path / "run").rows()) == len(CONDITIONS)


def test_prepare_changes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(Config.suited(train_size=10))
    assert list(tmp_path.iterdir()) == []
