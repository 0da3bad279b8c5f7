"""The study of forgetting, run small but whole, through its command line."""

import json
import math
from dataclasses import fields
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from memtools import cli
from memtools.data import Tensors, in_memory, load
from memtools.models import MLP
from memtools.report.figures.forgetting import FIGURES
from memtools.seeds import derive_seed, generator, seeded
from memtools.studies.folder import RunFolder
from memtools.studies.forgetting import Config, prepare, run, summarise
from memtools.studies.forgetting.kept import kept_at
from memtools.studies.forgetting.tasks import tasks_of
from memtools.training import Trainer

SMALL = [
    "--train-size", "40", "--validation-size", "30", "--epochs", "3", "--width", "8",
    "--batch-size", "10", "--learning-rate", "0.1", "--dropouts", "0.25", "0.5",
]  # fmt: skip
TINY = Config(train_size=30, validation_size=20, epochs=2, width=3, dropouts=(0.5,), seeds=(0, 1))
MODES = ("permuted", "classes")


def command(out, mode, *more):
    words = [*SMALL, "--tasks", mode, "--seeds", "0", "3", "--out", str(out)]
    return ["study", "forgetting", *words, *more]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {mode: tmp_path_factory.mktemp(mode) / "run" for mode in MODES}
    for mode, path in found.items():
        assert cli.main(command(path, mode)) == 0
    return found


@pytest.fixture(scope="module")
def folder(folders):
    return folders["permuted"]


def lines_of(folder):
    paths = sorted((folder / "metrics").iterdir())
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_one_line_for_every_epoch_of_either_task(folder, rows):
    config = json.loads((folder / "config.json").read_text())["settings"]
    assert set(config) == {f.name for f in fields(Config)}
    expected = [
        (seed, dropout, phase, epoch, 4 * epoch)
        for seed in (0, 3)
        for dropout in (0, 0.25, 0.5)
        for phase in "AB"
        for epoch in (1, 2, 3)
    ]
    names = ("seed", "dropout", "phase", "epoch", "updates")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)


def by_hand(mode, part, phase, seed):
    inputs, targets = part.inputs.numpy(), part.targets.numpy()
    if mode == "permuted":
        if phase == "B":
            order = torch.randperm(64, generator=generator(seed, "permutation")).tolist()
            inputs = np.stack([[x.ravel()[i] for i in order] for x in inputs]).reshape(-1, 1, 8, 8)
        return Tensors(torch.tensor(inputs), torch.tensor(targets))
    first = 0 if phase == "A" else 5
    own = [i for i, target in enumerate(targets) if first <= target < first + 5]
    return Tensors(torch.tensor(inputs[own]), torch.tensor(targets[own] - first))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0, 0.5])
def test_numbers_are_those_of_two_trainers_one_after_the_other(folders, mode, dropout):
    split = load("digits", train_size=40, validation_size=30)
    parts = in_memory(split.train), in_memory(split.validation)
    (train_a, held_out_a), (train_b, held_out_b) = (
        [by_hand(mode, part, phase, 3) for part in parts] for phase in "AB"
    )
    with seeded(3, "weights"):
        model = MLP((1, 8, 8), 10, width=8, dropout=dropout)
    sgd = partial(torch.optim.SGD, lr=0.1)
    for phase, train in (("A", train_a), ("B", train_b)):
        seed = derive_seed(3, "task", phase)
        Trainer(model, sgd, epochs=3, batch_size=10, seed=seed, device="cpu").fit(train)
        model.eval()
        right = [
            float((model(part.inputs).argmax(1) == part.targets).double().mean())
            for part in (held_out_a, held_out_b)
        ]
        (line,) = [
            row
            for row in lines_of(folders[mode])
            if (row["seed"], row["dropout"], row["phase"], row["epoch"]) == (3, dropout, phase, 3)
        ]
        assert [line["accuracy_a"], line["accuracy_b"]] == pytest.approx(right)


def test_a_permutation_is_the_same_for_all_examples_and_another_for_each_seed():
    data = prepare(TINY)
    first, second = (tasks_of(TINY, data, seed)["B"] for seed in (0, 1))
    assert not torch.equal(first.train.inputs, second.train.inputs)
    order = torch.randperm(64, generator=generator(0, "permutation"))
    expected = data.validation.inputs.reshape(20, 64)[:, order].reshape(20, 1, 8, 8)
    assert torch.equal(first.validation.inputs, expected)
    assert torch.equal(first.validation.targets, data.validation.targets)


@pytest.mark.parametrize(
    ("a", "b", "goal", "expected"),
    [
        ([1, 0.8, 0.6], [0.1, 0.5, 0.9], 0.5, 0.8),
        ([1, 0.8, 0.6], [0.1, 0.5, 0.9], 0.3, 0.9),
        ([1, 0.8, 0.6, 0.5], [0.1, 0.9, 0.2, 0.9], 0.9, 0.8),  # the first time
        ([1, 0.8, 0.6], [0.1, 0.5, 0.9], 0.1, 1.0),
        ([1, 0.8, 0.6], [0.1, 0.5, 0.9], 0.91, math.nan),
    ],
)
def test_kept_is_accuracy_on_a_when_b_first_reaches_the_goal(a, b, goal, expected):
    assert kept_at(np.array(a), np.array(b), goal) == pytest.approx(expected, nan_ok=True)


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [(v["claim"], v["about"]) for v in verdicts] == [
        ("C10", "dropout 0.25"), ("C10", "dropout 0.5"),
    ] * 3  # fmt: skip
    found = {(r["seed"], r["dropout"], r["phase"], r["epoch"]): r for r in rows}

    def last(name, dropout):
        return np.array([found[seed, dropout, "B", 3][name] for seed in (0, 3)])

    after = last("accuracy_a", 0.5) - last("accuracy_a", 0)
    assert verdicts[3]["effect"] == pytest.approx(after.mean())
    learnt = last("accuracy_b", 0.5) - last("accuracy_b", 0) + 0.01
    assert verdicts[5]["effect"] == pytest.approx(learnt.mean())

    def kept(seed, dropout):
        course = [found[seed, dropout, "A", 3], *(found[seed, dropout, "B", e] for e in (1, 2, 3))]
        goal = 0.95 * found[seed, 0, "B", 3]["accuracy_b"]
        for before, after in pairwise(course):
            if before["accuracy_b"] < goal <= after["accuracy_b"]:
                way = (goal - before["accuracy_b"]) / (after["accuracy_b"] - before["accuracy_b"])
                return (1 - way) * before["accuracy_a"] + way * after["accuracy_a"]
        return course[0]["accuracy_a"] if course[0]["accuracy_b"] >= goal else math.nan

    for verdict, dropout in zip(verdicts[:2], (0.25, 0.5), strict=True):
        effects = np.array([kept(seed, dropout) - kept(seed, 0) for seed in (0, 3)])
        if np.isnan(effects).any():
            assert (verdict["verdict"], verdict["effect"]) == ("undecided", None)
            assert verdict["n"] == np.isfinite(effects).sum()
        else:
            assert verdict["effect"] == pytest.approx(effects.mean())


def test_report_needs_no_other_file_and_no_network(folders, check_page):
    for mode in MODES:
        check_page(folders[mode], FIGURES, Config)
        page = (folders[mode] / "report.html").read_text()
        assert ("of other classes" in page) == (mode == "classes")
        for verdict in json.loads((folders[mode] / "verdicts.json").read_text()):
            assert verdict["statement"].split(" (")[0] in page


def test_killed_and_resumed_ends_in_the_same_files(folder, tmp_path, contents, killed):
    out = tmp_path / "killed"
    for moment in (3, 6):
        killed(moment, command(out, "permuted", "--resume"))
    assert cli.main(command(out, "permuted", "--resume")) == 0
    assert contents(out) == contents(folder)


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)

    def text_of(of_b):
        """Lines in which A goes from 90 to 50% (80% with dropout), and B to what is given."""
        rows = finished.rows()
        for row in rows:
            is_last = (row["phase"], row["epoch"]) == ("B", 2)
            row["accuracy_a"] = (0.8 if row["dropout"] else 0.5) if is_last else 0.9
            row["accuracy_b"] = of_b(row["dropout"], row["seed"]) if is_last else 0.1
        rewrite(tmp_path / "run", rows)
        summary = summarise(finished, TINY, data)
        return dict(sentence.split(": ", 1) for sentence in summary.sentences), summary

    text, summary = text_of(lambda dropout, seed: 0.8)
    assert text["Task A"].endswith("right: 90% with no dropout, 90% with dropout 0.5.")
    assert "80% with no dropout, 80% with dropout 0.5 of its held-out" in text["Then task B"]
    assert "still 50% with no dropout, 80% with dropout 0.5." in text["Then task B"]
    # 66 of the 70 points from 10 to 80%.
    assert "when 76% of task B" in text["At equal accuracy on B"]
    assert "52% with no dropout, 81% with dropout 0.5" in text["At equal accuracy on B"]
    assert set(text) == {"Task A", "Then task B", "At equal accuracy on B"}
    assert [row[2] for row in summary.tables[1].rows[1::2]] == ["holds"] * 3

    # One of the two networks with dropout does not learn B.
    text, summary = text_of(lambda dropout, seed: 0.2 if dropout and seed else 0.8)
    assert "1 of 2 networks never learn that much" in text["Caution"]
    assert text["At equal accuracy on B"].endswith("still right of task A: 52% with no dropout.")
    assert text["Caution on learning"].startswith("task B is learnt far less than task A was with "
                                                  "dropout 0.5;")  # fmt: skip
    assert summary.tables[0].rows[1][2] == "not reached"
    assert summary.tables[1].rows[1][2:] == ["undecided", "", "", "1"]


def test_summary_reads_the_folder_again(folder):
    settings = json.loads((folder / "config.json").read_text())["settings"]
    config = Config(**settings)
    opened = RunFolder.open(folder, "forgetting", config.as_json(), "cpu")
    plain, *others = summarise(opened, config, prepare(config)).outcomes
    assert (plain.dropout, [o.dropout for o in others]) == (0, [0.25, 0.5])
    assert plain.a.shape == plain.b.shape == (2, 6)
    assert plain.goals == pytest.approx(0.95 * plain.b[:, -1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "both"}, "tasks must be one of permuted, classes, got 'both'"),
        ({"dropouts": ()}, "dropouts must be above 0 and less than 1"),
        ({"dropouts": (0, 0.5)}, "dropouts must be above 0 and less than 1"),
        ({"dropouts": (0.5, 0.25)}, "dropouts must go from weak to strong"),
        ({"dropout": 0.5}, "dropout must be 0 in this study, got 0.5; its strengths are dropouts"),
        ({"goal": 1.1}, "goal must be above 0 and at most 1, got 1.1"),
        ({"margin": 0}, "margin must be positive, got 0"),
        ({"model": "tiny-mlp"}, "model must be one of mlp, small-alexnet, got 'tiny-mlp'"),
        (
            {"tasks": "classes", "validation_size": 1},
            "tasks must be permuted here, got classes; there is no example of task",
        ),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**options))
