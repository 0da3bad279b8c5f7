"""The study of capacity, run small but whole, through its command line."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from memtools import cli, seeds
from memtools.data import in_memory, load, random_inputs, random_labels
from memtools.models import MLP
from memtools.report.figures.capacity import FIGURES
from memtools.studies.capacity import Config, cells, prepare, run, summarise
from memtools.studies.capacity.outcomes import outcomes_of, slope, smallest_sufficient

SMALL = [
    "--train-size", "60", "--validation-size", "30", "--epochs", "5", "--every", "2",
    "--batch-size", "10", "--widths", "3", "9", "--shares", "0.2", "0.6", "--precision", "float64",
]  # fmt: skip
TINY = Config(
    train_size=20, validation_size=20, epochs=2, widths=(2, 4, 8), shares=(0.5,), batch_size=5,
    seeds=(0, 1),
)  # fmt: skip


def command(out, *more):
    return ["study", "capacity", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_one_line_for_each_network(folder, rows):
    config = json.loads((folder / "config.json").read_text())
    assert config["study"] == "capacity"
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    expected = [
        (f"width {width}", seed, width, noise, share, size)
        for width in (3, 9)
        for seed in (0, 3)
        for noise, share, size in (
            ("none", 0.0, 60),
            ("inputs", 0.2, 60),
            ("labels", 0.2, 60),
            ("removed", 0.2, 48),
            ("inputs", 0.6, 60),
            ("labels", 0.6, 60),
            ("removed", 0.6, 24),
        )
    ]
    names = ("task", "seed", "width", "noise", "share", "train_size")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)
    assert {row["updates"] for row in rows} == {30}
    assert {row["best_epoch"] for row in rows} <= {2, 4, 5}


def trained_by_hand(noise, share, width, seed):
    """Accuracies on the held-out examples after epochs 2, 4 and 5, and in training at the end."""
    split = load("digits", train_size=60, validation_size=30)
    train, held_out = in_memory(split.train), in_memory(split.validation)
    noisy = train
    if noise == "labels":
        noisy = in_memory(random_labels(train, share, seed=seed, num_classes=10))
    if noise in ("inputs", "removed"):
        noisy = in_memory(random_inputs(train, share, seed=seed))
    if noise == "removed":
        kept = [i for i in range(60) if not noisy.is_corrupted[i]]
        noisy = train.subset(torch.tensor(kept))
    inputs, targets = noisy.inputs.double(), noisy.targets
    with seeds.seeded(seed, "weights"):
        model = MLP((1, 8, 8), 10, width=width).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = []
    for k in range(1, 20):
        order += torch.randperm(len(noisy), generator=seeds.generator(seed, "pass", k)).tolist()

    def accuracy(x, y):
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    found = []
    for update in range(30):
        batch = order[10 * update : 10 * (update + 1)]
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        if update + 1 in (12, 24, 30):
            found.append(accuracy(held_out.inputs.double(), held_out.targets))
    return found, accuracy(inputs, targets)


@pytest.mark.parametrize(
    ("noise", "share", "width", "seed"),
    [("none", 0.0, 9, 0), ("inputs", 0.6, 3, 3), ("labels", 0.2, 9, 3), ("removed", 0.6, 9, 0)],
)
def test_numbers_are_those_of_a_training_by_hand(noise, share, width, seed, rows):
    held_out, fitted = trained_by_hand(noise, share, width, seed)
    wanted = {"noise": noise, "share": share, "width": width, "seed": seed}
    (row,) = (row for row in rows if wanted.items() <= row.items())
    assert row["best_validation_accuracy"] == pytest.approx(max(held_out))
    assert row["best_epoch"] == (2, 4, 5)[held_out.index(max(held_out))]
    assert row["validation_accuracy"] == pytest.approx(held_out[-1])
    assert row["train_accuracy"] == pytest.approx(fitted)


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [v["claim"] for v in verdicts] == ["C4"] * 8
    slopes: dict[tuple[str, str], list[float]] = {}
    for seed in (0, 3):
        for noise in ("inputs", "labels", "removed"):
            doublings, short = [], []
            for share in (0.0, 0.2, 0.6):
                narrow, wide = (
                    row["best_validation_accuracy"]
                    for width in (3, 9)
                    for row in rows
                    if (row["seed"], row["width"], row["share"]) == (seed, width, share)
                    and row["noise"] == (noise if share else "none")
                )
                enough = 3 if narrow >= max(narrow, wide) - 0.02 - 1e-9 else 9
                doublings.append(np.log2(enough))
                short.append(wide - narrow)
            for name, values in (("width", doublings), ("short", short)):
                fit = np.polyfit([0, 0.2, 0.6], values, 1)[0]
                slopes.setdefault((name, noise), []).append(fit)
    for place, (name, noise) in enumerate(
        (name, noise) for name in ("width", "short") for noise in ("inputs", "labels")
    ):
        first = verdicts[4 * (place // 2) + place % 2]
        second = verdicts[4 * (place // 2) + place % 2 + 2]
        expected = np.mean(slopes[name, noise])
        assert first["effect"] == pytest.approx(expected, abs=1e-9)
        control = np.mean(slopes[name, "removed"])
        assert second["effect"] == pytest.approx(expected - control, abs=1e-9)
        assert first["about"] == second["about"] == f"random {noise}"


def test_smallest_sufficient_is_the_first_within_the_tolerance():
    best = np.array([[0.50, 0.88, 0.90, 0.89], [0.91, 0.7, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4]])
    assert smallest_sufficient(best, 0.02).tolist() == [1, 0, 3]
    assert smallest_sufficient(best, 0.01).tolist() == [2, 0, 3]
    assert slope([0, 1, 2], np.array([1.0, 3.0, 5.0])) == pytest.approx(2)


def test_killed_again_and_again_and_resumed_ends_in_the_same_folder(
    folder, tmp_path, contents, killed
):
    out = tmp_path / "killed"
    for moment in (2, 3):
        killed(moment, command(out, "--resume"))
    assert not (out / "report.html").exists()
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_report_needs_no_other_file_and_has_every_verdict(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        assert f"<td>- {verdict['about']}</td>" in page
        assert verdict["statement"].split(" (")[0] in page


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    lines = finished.rows()
    assert len(lines) == 4 * len(cells(TINY))
    for row in lines:
        # Width 4 is enough without noise and with examples removed, width 8 with random inputs.
        needed = {"none": 4, "removed": 4, "inputs": 8, "labels": 2}[row["noise"]]
        row["best_validation_accuracy"] = 0.9 if row["width"] >= needed else 0.5
        row["train_accuracy"] = 0.25 if row["width"] == 2 else 1.0
    rewrite(tmp_path / "run", lines)
    summary = summarise(finished, TINY, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "is 4, 8 with 0, 50% random inputs" in text["Random inputs"]
    assert "+2.0 doublings" in text["Random inputs"]
    assert "is 4, 2 with 0, 50% random labels" in text["Random labels"]
    assert "-2.0 doublings" in text["Random labels"]
    assert "it is 4, 4: +0.0 doublings" in text["Control"]
    assert "narrowest network has 25%" in text["Fitting"]
    assert "20.0, 40.0 points worse than the widest" in text["Without a threshold"]
    assert "for 2 of 2 seeds with 50% random inputs." in text["Caution at the widest"]
    assert "for 2 of 2 seeds with 50% random labels." in text["Caution at the narrowest"]
    of_rows = outcomes_of(lines, TINY)
    assert of_rows.sufficient("inputs").tolist() == [[4, 8], [4, 8]]
    *_, verdicts = summary.tables
    by_name = [row for row in verdicts.rows if row[0].startswith("-")]
    assert [row[2] for row in by_name[:2]] == ["holds", "does not hold"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (4,)}, "widths must be at least two, from 1 up, got"),
        ({"widths": (4, 4)}, "widths must be different numbers, got"),
        ({"shares": ()}, "shares must be different numbers, got"),
        ({"shares": (0.5, 1.0)}, "shares must lie between 0 and 1, got"),
        ({"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"train_size": 100, "batch_size": 21}, "batch_size 21 is more than the 20 examples"),
        ({"train_size": 20, "shares": (0.01, 0.2)}, "of 20 examples make"),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**options))
