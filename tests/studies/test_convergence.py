"""The study of convergence, run small but whole, through its command line."""

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from memtools import cli
from memtools.data import in_memory, load, random_inputs, random_labels
from memtools.models import MLP
from memtools.report.figures.convergence import FIGURES
from memtools.seeds import generator, seeded
from memtools.studies.convergence import Config, cells, prepare, run, summarise
from memtools.studies.convergence.times import Bounds, Times, judge_bounds
from memtools.training import Trainer

# Some trainings get there within the epochs, and some do not.
SMALL = [
    "--train-size", "60", "--validation-size", "20", "--epochs", "60", "--sizes", "40", "10", "20",
    "--widths", "12", "6", "--batch-size", "10", "--learning-rate", "0.2",
]  # fmt: skip
POINTS = [(10, 12), (20, 12), (40, 12), (40, 6)]
KEYS = ["real", "random-labels-100", "random-inputs-100", "random-inputs-50"]
TINY = Config(sizes=(10, 20), widths=(2, 3), epochs=2, validation_size=10, seeds=(0, 1))


def command(out, *more):
    return ["study", "convergence", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_one_line_for_each_network(rows):
    names = ("seed", "trained_on", "size", "width")
    expected = [(seed, key, *point) for seed in (0, 3) for key in KEYS for point in POINTS]
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)
    for row in rows:
        assert row["is_censored"] == (row["train_accuracy"] < 1)
        assert row["epochs"] <= 60
        assert row["epochs"] == 60 or not row["is_censored"]
        assert row["updates"] == row["epochs"] * row["size"] // 10
    assert {row["is_censored"] for row in rows} == {False, True}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("point", [(10, 12), (40, 6)])
def test_times_are_those_of_networks_that_are_trained_alone(key, point, rows):
    size, width = point
    train = in_memory(load("digits", train_size=60, validation_size=20).train)
    drawn = torch.randperm(60, generator=generator(3, "training set"))[:size]
    train = in_memory(Subset(train, drawn.tolist()))
    if key == "random-labels-100":
        train = in_memory(random_labels(train, 1.0, seed=3, num_classes=10))
    if "inputs" in key:
        train = in_memory(random_inputs(train, 0.5 if "50" in key else 1.0, seed=3))
    with seeded(3, "weights"):
        model = MLP((1, 8, 8), 10, width=width)
    sgd = partial(torch.optim.SGD, lr=0.2)
    trainer = Trainer(model, sgd, epochs=60, batch_size=10, seed=3, device="cpu")
    accuracies = [result.train_accuracy for result in trainer.fit(train)]
    ever = [epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy == 1]
    expected = min(ever, default=60)
    own = {"seed": 3, "trained_on": key, "size": size, "width": width}
    (row,) = [row for row in rows if row.items() >= own.items()]
    assert (row["epochs"], row["is_censored"]) == (expected, not ever)


def test_slopes_are_of_a_straight_line_and_bounds_where_a_time_is_not_known():
    x = np.array([10.0, 20.0, 40.0, 80.0])
    epochs = np.array([[3.0, 5.0, 9.0, 30.0]] * 4)
    # Nothing unknown; the longest; the first; both.
    censored = np.zeros((4, 4), bool)
    censored[1, 3] = censored[2, 0] = censored[3, 0] = censored[3, 3] = True
    slopes = Times(x, epochs, epochs, censored).slopes()
    line = np.polyfit(np.log(x), np.log(epochs[0]), 1)[0]
    assert slopes.low == pytest.approx([line, line, -np.inf, -np.inf])
    assert slopes.high == pytest.approx([line, np.inf, line, np.inf])
    # The longer it really takes, the steeper the line.
    epochs[1, 3] = 50
    assert np.polyfit(np.log(x), np.log(epochs[1]), 1)[0] > slopes.low[1]


def test_a_verdict_from_bounds_only_where_they_suffice():
    inf, some, more = np.inf, np.array([1.0, 1.1, 1.2]), np.array([1.0, 1.1, 5.0])
    exact = judge_bounds("C5", "so", Bounds(some, some), about="noise")
    assert (exact.verdict, exact.about, exact.n) == ("holds", "noise", 3)
    below = judge_bounds("C5", "so", Bounds(some, np.array([1.0, inf, inf])), about="noise")
    assert below.verdict == "holds"
    assert below.about == "noise (lower bound: 2 of 3 seeds not finished)"
    above = judge_bounds("C5", "so", Bounds(np.full(3, -inf), -some), about="noise")
    assert above.verdict == "does not hold"
    assert above.about == "noise (upper bound: 3 of 3 seeds not finished)"
    for unclear in (
        Bounds(np.array([1.0, 1.1, -inf]), more),
        Bounds(np.array([-3.0, 0.1, 0.2]), np.array([-3.0, 0.1, inf])),
        Bounds(np.full(3, -inf), np.full(3, inf)),
    ):
        verdict = judge_bounds("C5", "so", unclear, about="noise")
        assert (verdict.verdict, verdict.effect, verdict.low) == ("undecided", None, None)


def test_verdicts_are_about_the_numbers_in_the_folder(tmp_path, rewrite):
    """Times that grow as the root of the size on real data, and as the size with random labels."""
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    rows = finished.rows()
    for row in rows:
        is_real = row["trained_on"] == "real"
        row |= {"is_censored": False, "epochs": 1000 + row["seed"]}
        row["epochs"] *= row["size"] ** (0.5 if is_real else 1) * row["width"] ** -1.0
    rewrite(tmp_path / "run", rows)
    verdicts = _verdicts(finished, data, "random labels")
    assert [v["claim"] for v in verdicts] == ["C5", "C5", "ours"]
    assert verdicts[0]["effect"] == pytest.approx(0.5)
    assert verdicts[1]["effect"] == pytest.approx(0)
    assert verdicts[2]["effect"] == pytest.approx(0.5 * np.log(20))
    # With the longest unknown, the same numbers are bounds.
    for row in rows:
        row["is_censored"] = row["trained_on"] != "real" and (row["size"], row["width"]) == (20, 3)
    rewrite(tmp_path / "run", rows)
    verdicts = _verdicts(finished, data, "random labels")
    assert verdicts[0]["effect"] == pytest.approx(0.5)
    assert "lower bound: 2 of 2 seeds not finished" in verdicts[0]["about"]
    # The largest width not finished makes the slope larger, and the effect smaller.
    assert verdicts[1]["effect"] is None


def _verdicts(finished, data, noise):
    summarise(finished, TINY, data)
    verdicts = json.loads((finished.path / "verdicts.json").read_text())
    return [v for v in verdicts if v["about"].startswith(f"all {noise.split()[-1]}")]


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    rows = finished.rows()
    for row in rows:
        row |= {"is_censored": False, "epochs": row["size"]}
        if row["trained_on"] == "random-inputs-50":
            row |= {"is_censored": row["seed"] == 1, "epochs": 80}
    rewrite(tmp_path / "run", rows)
    summary = summarise(finished, TINY, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert text["Fitting"].startswith("21 of 24 trainings came to have every training example")
    assert "≥" in text["Fitting"]
    assert "from 10 to 20 with real labels" in text["Size"]
    assert "from ≥ 80 to ≥ 80 with half the inputs random." in text["Size"]
    assert "from 20 to 20 with all inputs random" in text["Width"]
    assert "times 1 with all labels random" in text["Noise and real data"]
    assert "≥ 4 with half the inputs random." in text["Noise and real data"]
    slopes = {row[0]: row[-1] for row in summary.tables[0].rows}
    assert slopes["real labels"] == "+1.00"
    assert slopes["half the inputs random"] == "?"


def test_a_run_that_was_killed_ends_in_the_same_files(folder, tmp_path, killed, contents):
    out = tmp_path / "run"
    for moment in (2, 4):
        killed(moment, command(out, "--resume"))
    assert not (out / "report.html").exists()
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    config = json.loads((folder / "config.json").read_text())["settings"]
    assert set(config) == {f.name for f in fields(Config)}
    page = (folder / "report.html").read_text()
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        assert f"<td>- {verdict['about']}</td>" in page


def test_progress_counts_every_epoch_although_networks_stop_early(tmp_path):
    config = replace(TINY, epochs=200, seeds=(0,))
    told: list[int] = []
    run(config, tmp_path / "run", progress=lambda line, epochs: told.append(epochs))
    assert sum(told) == 200 * len(cells(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (100,)}, r"sizes must be at least two different numbers, got \(100,\)"),
        ({"widths": (8, 8)}, r"widths must be at least two different numbers, got \(8, 8\)"),
        ({"sizes": (5, 50)}, "sizes must be at least 10, got 5"),
        ({"widths": (0, 5)}, "widths must be at least 1, got 0"),
        (
            {"sizes": (50, 100), "train_size": 70},
            "sizes must be at most 70, the examples of dataset digits there are, got 100",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**settings))
