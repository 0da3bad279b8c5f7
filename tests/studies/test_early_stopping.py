"""The study of early stopping, run small but whole, through its command line."""

import json
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch

import memtools
from memtools import cli
from memtools.data import in_memory, load, random_labels
from memtools.models import MLP
from memtools.report.figures.early_stopping import FIGURES
from memtools.seeds import generator, seeded
from memtools.studies.early_stopping import Config, prepare, run, summarise
from memtools.studies.early_stopping.outcomes import RANDOM
from memtools.studies.early_stopping.rules import LABEL_FREE, RULES, smoothed
from memtools.training import Callback, Trainer

SMALL = [
    "--train-size", "40", "--validation-size", "31", "--epochs", "6", "--width", "6",
    "--batch-size", "10", "--csr-examples", "12", "--csr-steps", "3", "--few-labels", "4",
    "--smoothing", "3",
]  # fmt: skip
TINY = Config(
    train_size=20, validation_size=20, epochs=4, width=3, csr_examples=5, csr_steps=2, few_labels=3,
    smoothing=1, seeds=(0, 1),
)  # fmt: skip
KEYS = ["real", "random-labels-20", "random-labels-40", "random-labels-60"]


def command(out, *more):
    return ["study", "early-stopping", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_one_line_for_each_epoch(folder, rows):
    config = json.loads((folder / "config.json").read_text())
    assert config["study"] == "early-stopping"
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    expected = [(key, seed, epoch) for seed in (0, 3) for key in KEYS for epoch in range(1, 7)]
    names = ("condition", "seed", "epoch")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)


@pytest.mark.parametrize("key", ["real", "random-labels-60"])
def test_numbers_are_those_of_the_public_functions(key, rows):
    """The same training by hand, all curves taken down after each epoch."""
    split = load("digits", train_size=40, validation_size=31)
    train, held_out = in_memory(split.train), in_memory(split.validation)
    if key == "random-labels-60":
        train = in_memory(random_labels(train, 0.6, seed=3, num_classes=10))
    with seeded(3, "weights"):
        model = MLP((1, 8, 8), 10, width=6)
    order = torch.randperm(31, generator=generator(3, "halves"))
    validation, test = held_out.subset(order[:15]), held_out.subset(order[15:])
    drawn = {
        part: torch.randperm(len(data), generator=generator(0, "csr examples", part))[:12]
        for part, data in (("train", train), ("validation", validation))
    }
    found, norms = [], []

    def accuracy(data):
        with torch.no_grad():
            return float((model(data.inputs).argmax(1) == data.targets).double().mean())

    class Look(Callback):
        def on_epoch_end(self, run, result) -> None:
            model.eval()
            x = train.inputs.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(model(x), train.targets, reduction="sum")
            norms.append(torch.autograd.grad(loss, x)[0].abs().flatten(1).sum(1))
            ratios = {
                f"csr_{part}": float(
                    memtools.critical_sample_ratio(
                        model,
                        data.inputs[drawn[part]],
                        radius=1 / 32,
                        max_steps=3,
                        method="lass",
                        generator=generator(3, "csr", part, result.epoch),
                    )
                )
                for part, data in (("train", train), ("validation", validation))
            }
            found.append(
                ratios
                | {
                    "train_accuracy": result.train_accuracy,
                    "loss": result.loss,
                    "validation_accuracy": accuracy(validation),
                    "few_accuracy": accuracy(validation.subset(torch.arange(4))),
                    "test_accuracy": accuracy(test),
                    "gini_instantaneous": float(memtools.gini(norms[-1])),
                    "gini_of_running_mean": float(memtools.gini(torch.stack(norms).mean(0))),
                }
            )

    Trainer(
        model,
        partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        epochs=6,
        batch_size=10,
        seed=3,
        device="cpu",
        callbacks=[Look()],
    ).fit(train)
    lines = [row for row in rows if (row["condition"], row["seed"]) == (key, 3)]
    for row, expected in zip(lines, found, strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_rules_choose_what_they_say():
    up_and_down = np.array([0.1, 0.4, 0.9, 0.9, 0.3, 0.2])
    drop = np.array([1.0, 0.3, 0.2, 0.1, 0.05, 0.0])
    falling_then_up = np.array([0.5, 0.3, 0.2, 0.25, 0.8, 0.9])
    expected = {
        "last": ("loss", drop, 5),
        "validation": ("validation_accuracy", up_and_down, 2),
        "few": ("few_accuracy", up_and_down, 2),
        "csr_jump": ("csr_validation", falling_then_up, 3),
        "csr_minimum": ("csr_validation", falling_then_up, 2),
        "csr_train_maximum": ("csr_train", up_and_down, 2),
        "gini_turn": ("gini_instantaneous", falling_then_up, 2),
        "gini_maximum": ("gini_instantaneous", falling_then_up, 5),
        "mean_gini_maximum": ("gini_of_running_mean", up_and_down, 2),
        "loss_elbow": ("loss", drop, 1),
    }
    assert expected.keys() == RULES.keys()
    for key, (name, curve, place) in expected.items():
        assert RULES[key]({name: curve}, 1) == place, key
    assert RULES["gini_turn"]({"gini_instantaneous": drop}, 1) == 5  # it never turns


def test_no_rule_sees_test_examples_and_none_without_labels_sees_labels():
    seen = {key: set(rule.curves) for key, rule in RULES.items()}
    assert not any("test_accuracy" in names for names in seen.values())
    for key in LABEL_FREE:
        assert not seen[key] & {"validation_accuracy", "few_accuracy", "validation_loss"}


def test_smoothing_is_a_centred_mean_and_for_rules_without_labels_alone():
    curve = np.array([1.0, 4.0, 1.0, 7.0])
    assert smoothed(curve, 3).tolist() == [2.5, 2, 4, 4]
    assert smoothed(curve, 1).tolist() == curve.tolist()
    assert RULES["csr_minimum"]({"csr_validation": curve}, 3) == 1
    assert RULES["validation"]({"validation_accuracy": curve}, 3) == 3


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert {v["claim"] for v in verdicts} == {"ours"}
    assert len(verdicts) == 3 * len(LABEL_FREE) * len(KEYS)
    effects: dict[str, list[list[float]]] = {
        other: [] for other in ("last", "random", "validation")
    }
    for key in LABEL_FREE:
        for condition in KEYS:
            gains: dict[str, list[float]] = {other: [] for other in effects}
            for seed in (0, 3):
                lines = [r for r in rows if (r["condition"], r["seed"]) == (condition, seed)]
                curves = {n: np.array([r[n] for r in lines]) for n in lines[0] if n != "condition"}
                test = curves["test_accuracy"]
                own = test[RULES[key](curves, 3)]
                gains["last"].append(own - test[-1])
                gains["random"].append(own - test.mean())
                validation = test[curves["validation_accuracy"].argmax()]
                gains["validation"].append(own - validation + 0.01)
            for other, values in gains.items():
                effects[other].append(values)
    expected = [np.mean(values) for of_other in effects.values() for values in of_other]
    assert [v["effect"] for v in verdicts] == pytest.approx(expected)
    assert verdicts[0]["about"] == f"{RULES['csr_jump'].title}, real labels"


# Lines and checkpoints are to be on the disk one after the other.
@pytest.mark.parametrize("moments", [(3, 30)])
def test_killed_again_and_again_and_resumed_ends_in_the_same_folder(
    moments, folder, tmp_path, contents, killed
):
    out = tmp_path / "killed"
    for moment in moments:
        killed(moment, command(out, "--resume"))
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_report_needs_no_other_file_and_has_every_rule(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for rule in RULES.values():
        assert f"<td>{rule.title}</td>" in page


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    lines = finished.rows()
    for row in lines:
        place = row["epoch"] - 1
        row["test_accuracy"] = (0.4, 0.8, 0.6, 0.4)[place]
        row["validation_accuracy"] = (0.4, 0.8, 0.6, 0.4)[place]
        row["few_accuracy"] = (0.4, 0.4, 0.6, 0.4)[place]
        row["csr_validation"] = (0.3, 0.2, 0.6, 0.7)[place]
        row["csr_train"] = (0.3, 0.2, 0.6, 0.7)[place]
        row["gini_instantaneous"] = row["gini_of_running_mean"] = (0.1, 0.2, 0.3, 0.4)[place]
        row["train_accuracy"] = 1.0
        if row["condition"] == "real":
            row["test_accuracy"] = 0.8
    rewrite(tmp_path / "run", lines)
    summary = summarise(finished, TINY, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "is 80%, 80%, 80%, 80% at its best epoch and 80%, 40%, 40%, 40%" in text["Need"]
    assert "“critical share held out: before its largest rise”: 0.0 points" in text["Finding"]
    assert "gives away 0.0, with 3 labels 20.0, the last epoch 40.0" in text["Finding"]
    assert "an epoch drawn at random 25.0" in text["Finding"]
    assert (
        "“critical share in training: highest” chooses epoch 4, 4, 4, 4 and gives away 40.0"
        in (text["Critical share"])
    )
    assert "the best epochs are 1, 2, 2, 2" in text["Gini coefficient"]
    # Both rules of the critical share held out, with each of three shares of noise.
    assert "holds for 6 of 24" in text["End"]
    assert "with real labels, training to the end costs less than 2 points" in text["Caution"]
    regrets = summary.outcomes["random-labels-20"].regrets
    assert regrets[RANDOM] == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 4}, "smoothing must be odd, got 4"),
        ({"few_labels": 0}, "few_labels must be at least 1, got 0"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"margin": 0.0}, "margin must be positive, got 0.0"),
        ({"validation_size": 60}, "few_labels must be at most the 30 examples"),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**options))
