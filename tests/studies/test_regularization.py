"""The study of regularisation, run small but whole, through its command line."""

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch

from memtools import cli, find_critical
from memtools.data import Tensors, in_memory, load, random_labels
from memtools.models import MLP
from memtools.report.figures.regularization import FIGURES
from memtools.seeds import derive_seed, generator, seeded
from memtools.studies.folder import RunFolder
from memtools.studies.regularization import Config, cells, prepare, run, summarise
from memtools.studies.regularization.adversarial import Adversary, train_adversarially
from memtools.studies.regularization.regularizers import REGULARIZERS
from memtools.studies.regularization.tradeoff import Curve, lowest_place, memorization_left
from memtools.training import Member, Trainer

SMALL = [
    "--train-size", "40", "--validation-size", "30", "--epochs", "4", "--width", "6",
    "--batch-size", "10", "--dropouts", "0.2", "0.5", "--input-dropouts", "0.3",
    "--input-noises", "1", "--hidden-noises", "0.1", "--weight-decays", "0.01",
    "--adversarial-dropouts", "0", "0.5", "--adversarial-every", "3", "--adversarial-steps", "3",
]  # fmt: skip
TINY = Config(
    train_size=20,
    validation_size=20,
    epochs=1,
    width=3,
    dropouts=(0.25, 0.5),
    input_dropouts=(0.5,),
    input_noises=(1,),
    hidden_noises=(0.1,),
    weight_decays=(0.1,),
    adversarial_dropouts=(0.5,),
    seeds=(0, 1),
)
TASKS = ["none", *REGULARIZERS]


def command(out, *more):
    return ["study", "regularization", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def data_of(labels, seed):
    split = load("digits", train_size=40, validation_size=30)
    train, validation = in_memory(split.train), in_memory(split.validation)
    if labels == "random":
        train = in_memory(random_labels(train, 1.0, seed=seed, num_classes=10))
    return train, validation


def model_of(seed, **settings):
    with seeded(seed, "weights"):
        return MLP((1, 8, 8), 10, width=6, **settings)


def test_one_line_for_every_strength_and_kind_of_labels(folder, rows):
    config = json.loads((folder / "config.json").read_text())["settings"]
    assert set(config) == {f.name for f in fields(Config)}
    strengths = {key: config[r.strengths] for key, r in REGULARIZERS.items()} | {"none": [0]}
    expected = [
        (task, seed, strength, labels, 4, 16)
        for task in TASKS
        for seed in (0, 3)
        for strength in strengths[task]
        for labels in ("real", "random")
    ]
    names = ("task", "seed", "strength", "labels", "epoch", "updates")
    assert sorted(tuple(row[name] for name in names) for row in rows) == sorted(expected)


@pytest.mark.parametrize(
    ("task", "strength", "settings", "decay"),
    [
        ("none", 0, {}, 0),
        ("dropout", 0.5, {"dropout": 0.5}, 0),
        ("input-dropout", 0.3, {"input_dropout": 0.3}, 0),
        ("input-noise", 1, {"input_noise": "std"}, 0),
        ("hidden-noise", 0.1, {"hidden_noise": 0.1}, 0),
        ("weight-decay", 0.01, {}, 0.01),
    ],
)
@pytest.mark.parametrize("labels", ["real", "random"])
def test_numbers_are_those_of_a_trainer_alone(rows, task, strength, settings, decay, labels):
    train, validation = data_of(labels, 3)
    if settings.get("input_noise") == "std":
        settings = {"input_noise": float(train.inputs.std())}
    sgd = partial(torch.optim.SGD, lr=0.03, momentum=0.9, weight_decay=decay)
    model = model_of(3, **settings)
    trainer = Trainer(model, sgd, epochs=4, batch_size=10, seed=3, device="cpu")
    last = trainer.fit(train, validation)[-1]
    (line,) = [
        row
        for row in rows
        if (row["task"], row["seed"], row["strength"], row["labels"]) == (task, 3, strength, labels)
    ]
    # The engine that trains many at once rounds in its own way.
    assert line["loss"] == pytest.approx(last.loss, rel=1e-4)
    for name in ("train_accuracy", "validation_accuracy"):
        assert line[name] == pytest.approx(getattr(last, name), abs=1e-9)


def by_hand(model, train, seed, adversary, epochs):
    """Adversarial training written out, for batches of ten."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    place = {}
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(train), generator=generator(seed, "order", epoch))
        torch.manual_seed(derive_seed(seed, "noise", epoch, 0))
        for number in range(len(train) // 10):
            first = number - number % adversary.every
            if number == first:
                soon = order[10 * first : 10 * (first + adversary.every)].split(10)
                chosen = torch.cat([batch[:5] for batch in soon])
                found = find_critical(
                    model,
                    train.inputs[chosen],
                    radius=adversary.radius,
                    max_steps=adversary.steps,
                    generator=generator(seed, "adversary", epoch, first),
                )
                place = {int(i): point for i, point in zip(chosen, found.points, strict=True)}
            batch = order[10 * number : 10 * number + 10]
            inputs = torch.stack(
                [place[i] if i in place else train.inputs[i] for i in batch.tolist()]
            )
            model.train()
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), train.targets[batch]).backward()
            sgd.step()


@pytest.mark.parametrize("labels", ["real", "random"])
def test_adversarial_training_is_that_on_points_of_find_critical(rows, labels):
    train, validation = data_of(labels, 3)
    model = model_of(3, dropout=0.5)
    by_hand(model, train, 3, Adversary(0.5, 1 / 16, 3, 3), epochs=4)
    (line,) = [
        row
        for row in rows
        if (row["task"], row["seed"], row["strength"], row["labels"])
        == ("dropout-adversarial", 3, 0.5, labels)
    ]
    for name, data in (("train_accuracy", train), ("validation_accuracy", validation)):
        model.eval()
        right = (model(data.inputs).argmax(1) == data.targets).double().mean()
        assert line[name] == pytest.approx(float(right))


def test_without_an_adversary_it_is_the_trainer_bit_for_bit():
    train, validation = data_of("real", 0)
    ours, theirs = model_of(0, dropout=0.5), model_of(0, dropout=0.5)
    told = []
    (last,) = train_adversarially(
        [Member(ours, train, 5, 0.03)],
        Adversary(0.0, 1 / 16, 3, 2),
        epochs=3,
        batch_size=15,
        momentum=0.9,
        validation=validation,
        device="cpu",
        precision="float32",
        progress=told.append,
    )
    sgd = partial(torch.optim.SGD, lr=0.03, momentum=0.9)
    trainer = Trainer(theirs, sgd, epochs=3, batch_size=15, seed=5, device="cpu")
    assert trainer.fit(train, validation)[-1] == last
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert told == [1, 1, 1]


def test_adversarial_training_that_diverges_says_so():
    train, validation = data_of("real", 0)
    with pytest.raises(FloatingPointError, match="adversarial training diverged"):
        train_adversarially(
            [Member(model_of(0), Tensors(train.inputs, train.targets), 0, 1e12)],
            Adversary(0.5, 1 / 16, 2, 1),
            epochs=20,
            batch_size=10,
            momentum=0.9,
            validation=validation,
            device="cpu",
            precision="float32",
            progress=lambda epochs: None,
        )


def lowest_on_a_fine_grid(real, random, least):
    places = np.linspace(0, len(real) - 1, 100_001)
    enough = np.interp(places, range(len(real)), real) >= least - 1e-12
    return np.interp(places[enough], range(len(real)), random).min()


def test_lowest_place_is_that_of_a_fine_grid():
    drawn = np.random.default_rng(0)
    for _ in range(50):
        real, random = drawn.random((2, 6))
        least = real[0] - 0.1 * drawn.random()
        place = lowest_place(real, random, least)
        found = np.interp(place, range(6), random)
        assert found == pytest.approx(lowest_on_a_fine_grid(real, random, least), abs=1e-4)
        assert np.interp(place, range(6), real) >= least - 1e-12


def test_places_are_chosen_by_the_other_seeds():
    curve = Curve(
        np.array([0.0, 0.5, 0.9]),
        np.array([[0.9, 0.9, 0.2], [0.9, 0.9, 0.9]]),
        np.array([[1.0, 0.6, 0.2], [1.0, 0.7, 0.1]]),
    )
    left = memorization_left(curve, 0.01)
    # The first seed is looked at where the second would go, and the other way round.
    assert left.places.tolist() == [2.0, pytest.approx(1 + 0.01 / 0.7)]
    assert left.random.tolist() == [0.2, pytest.approx(0.7 - 0.6 * 0.01 / 0.7)]
    assert left.real[0] == 0.2
    alone = memorization_left(replace(curve, real=curve.real[:1], random=curve.random[:1]), 0.01)
    assert alone.places.tolist() == [pytest.approx(1 + 0.01 / 0.7)]


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    found = {(r["task"], r["seed"], r["strength"], r["labels"]): r for r in rows}

    def left(task, strengths, seed):
        """On a fine grid: chosen on the other seed, looked at on this one."""
        points = [("none", 0), *((task, s) for s in strengths)]
        k = len(points)

        def of(s, labels, name):
            return np.array([found[t, s, x, labels][name] for t, x in points])

        other = 3 - seed
        real = of(other, "real", "validation_accuracy")
        random = of(other, "random", "train_accuracy")
        places = np.linspace(0, k - 1, 20_001 * (k - 1) + 1)
        enough = np.interp(places, range(k), real) >= real[0] - 0.01 - 1e-12
        values = np.where(enough, np.interp(places, range(k), random), np.inf)
        return np.interp(places[values.argmin()], range(k), of(seed, "random", "train_accuracy"))

    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert [v["claim"] for v in verdicts] == ["C8"] * 5
    dropout = [left("dropout", (0.2, 0.5), seed) for seed in (0, 3)]
    decay = [left("weight-decay", (0.01,), seed) for seed in (0, 3)]
    both = [left("dropout-adversarial", (0, 0.5), seed) for seed in (0, 3)]
    assert verdicts[3]["about"] == "with weight decay"
    assert verdicts[3]["effect"] == pytest.approx(np.subtract(decay, dropout).mean(), abs=1e-3)
    assert verdicts[4]["effect"] == pytest.approx(np.subtract(dropout, both).mean(), abs=1e-3)


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for regularizer in REGULARIZERS.values():
        assert f"<td>{regularizer.title}</td>" in page


def test_killed_and_resumed_ends_in_the_same_files(folder, tmp_path, contents, killed):
    out = tmp_path / "killed"
    for moment in (3, 9):
        killed(moment, command(out, "--resume"))
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def invented(rows, real, random):
    """Lines in which accuracies are what these say of a regulariser and a strength."""
    for row in rows:
        row["validation_accuracy"] = real(row["task"], row["strength"])
        row["train_accuracy"] = random(row["task"], row["strength"])
    return rows


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    data = prepare(TINY)
    finished = run(TINY, tmp_path / "run", data=data)
    assert len(finished.rows()) == 2 * 2 * 8
    assert len(cells(TINY)) == 2 * 7

    def real(task, strength):
        return {"none": 0.9, "dropout": 0.9 if strength < 0.5 else 0.5}.get(task, 0.6)

    def random(task, strength):
        return {"none": 1.0, "dropout": 0.3 if strength < 0.5 else 0.1}.get(task, 0.5)

    def text_of():
        summary = summarise(finished, TINY, data)
        return dict(sentence.split(": ", 1) for sentence in summary.sentences), summary

    rewrite(tmp_path / "run", invented(finished.rows(), real, random))
    text, summary = text_of()
    assert "right on 90% of the held-out" in text["Without regularisation"]
    assert "has learnt 100% of them" in text["Without regularisation"]
    # A fortieth of the way from strength 0.25 to 0.5: 0.3 - 0.2 / 40.
    assert "learnt: 30% with dropout;" in text["At a common accuracy"]
    assert "98% with weight decay" in text["At a common accuracy"]
    assert set(text) == {"Without regularisation", "At a common accuracy"}
    assert {row[2] for row in summary.tables[1].rows if row[0].startswith("-")} == {"holds"}

    rewrite(
        tmp_path / "run",
        invented(
            finished.rows(),
            lambda task, strength: 0.9,
            lambda task, strength: 0.7 if task in ("none", "input-noise") else 0.2,
        ),
    )
    text, _ = text_of()
    ends = text["Caution on the range"]
    assert "that with input dropout, hidden noise, weight decay, dropout + adv" in ends
    assert "input noise" not in ends
    assert text["Caution on the price"].endswith("with input noise; there it is as without "
                                                 "regularisation.")  # fmt: skip
    assert "only 70% of the random labels" in text["Caution"]


def test_summary_reads_the_folder_again(folder):
    settings = json.loads((folder / "config.json").read_text())["settings"]
    config = Config(**settings)
    opened = RunFolder.open(folder, "regularization", config.as_json(), "cpu")
    outcomes = summarise(opened, config, prepare(config)).outcomes
    assert outcomes.curves["dropout"].strengths.tolist() == [0, 0.2, 0.5]
    assert outcomes.curves["dropout-adversarial"].real.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropouts": (0.5, 0.25)}, r"dropouts must go from weak to strong, got \[0.5, 0.25\]"),
        ({"dropouts": (0, 0.5)}, "dropouts must be above 0 and less than 1"),
        ({"input_dropouts": (1,)}, "input_dropouts must be above 0 and less than 1"),
        ({"adversarial_dropouts": (-1,)}, "adversarial_dropouts must be at least 0 and less"),
        ({"weight_decays": ()}, "weight_decays must be above 0"),
        ({"dropout": 0.5}, "dropout must be 0 in this study, got 0.5; its strengths are dropouts"),
        ({"weight_decay": 0.1}, "weight_decay must be 0 in this study"),
        ({"adversarial_share": 0}, "adversarial_share must be above 0 and at most 1, got 0"),
        ({"adversarial_radius": 0}, "adversarial_radius must be positive, got 0"),
        ({"adversarial_every": 0}, "adversarial_every must be at least 1, got 0"),
        ({"input_noise_units": "pixels"}, "input_noise_units must be one of std, inputs"),
        ({"tolerance": 0}, "tolerance must be positive, got 0"),
        ({"model": "tiny-mlp"}, "model must be one of mlp, small-alexnet, got 'tiny-mlp'"),
    ],
)
def test_settings_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        prepare(Config(**options))
