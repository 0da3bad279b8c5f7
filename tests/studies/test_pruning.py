"""The study of pruning, run small but whole, through its command line."""

import json
from dataclasses import fields
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from memtools import cli
from memtools.data import Tensors, in_memory, load, random_labels
from memtools.gradients import input_gradient_norms, parameter_gradient_norms
from memtools.models import MLP
from memtools.report.figures.pruning import FIGURES
from memtools.seeds import derive_seed, generator, seeded
from memtools.sensitivity import loss_sensitivity
from memtools.studies.claims import judge
from memtools.studies.folder import RunFolder, read_parquet
from memtools.studies.pruning import Config, prepare, summarise
from memtools.studies.pruning.config import CONDITIONS
from memtools.studies.pruning.methods import METHODS, hardness_ranks
from memtools.studies.pruning.subsets import indices_of, subsets
from memtools.training import Callback, Member, TapeRecorder, Trainer, train_ensemble

SMALL = [
    "--train-size", "60", "--validation-size", "30", "--epochs", "4", "--width", "6",
    "--batch-size", "10", "--scoring-epochs", "5", "--scoring-every", "2", "--random-draws", "2",
    "--shares", "0.2", "0.4", "--window-positions", "0", "0.5",
]  # fmt: skip
KEYS = ["real", "random-labels-10", "random-labels-20", "random-labels-40"]


def command(out, *more):
    return ["study", "pruning", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def table_of(folder, key, seed):
    table = read_parquet(folder / "examples" / f"{key}-seed{seed}.parquet")
    return {name: np.array(values) for name, values in table.items()}


def standardised(key, seed):
    """Training and held-out examples by hand."""
    split = load("digits", train_size=60, validation_size=30)
    train, validation = in_memory(split.train), in_memory(split.validation)
    mean, deviation = train.inputs.mean(), train.inputs.std()
    if key != "real":
        share = int(key.rpartition("-")[2]) / 100
        train = in_memory(random_labels(train, share, mode="other", seed=seed, num_classes=10))
    inputs = (train.inputs - mean) / deviation
    train = Tensors(inputs, train.targets, train.is_corrupted, train.clean_targets)
    return train, Tensors((validation.inputs - mean) / deviation, validation.targets)


def network(seed):
    with seeded(seed, "weights"):
        return MLP((1, 8, 8), 10, width=6)


def test_folder_holds_what_is_promised(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["study"] == "pruning"
    assert set(config["settings"]) == {f.name for f in fields(Config)}
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics", "examples", "figures", "report.html", "summary.json",
        "verdicts.json",
    }  # fmt: skip
    for key in KEYS:
        for seed in (0, 3):
            table = table_of(folder, key, seed)
            assert {column for _, column, _ in METHODS.values()} < set(table)
            share = 0 if key == "real" else int(key[-2:]) / 100
            assert table["is_corrupted"].sum() == round(60 * share)
            assert (table["is_corrupted"] == (table["label"] != table["clean_label"])).all()


def test_a_line_for_each_part_and_score_and_equal_updates_for_all(rows):
    per_cell = 1 + (1 + 3 * 2 + 7 * (2 * 2 + 2)) + 7
    assert len(rows) == 2 * 4 * per_cell
    for row in rows:
        if row["kind"] in ("scoring", "detection"):
            continue
        assert row["updates"] == 4 * 6
        assert row["train_size"] == round((1 - row["share"]) * 60)
        assert 0 <= row["validation_accuracy"] <= 1


def test_scores_are_those_of_a_training_by_hand(folder):
    """Plain SGD, with a ledger kept by loops; its seed is not that of the networks compared."""
    key, seed = "random-labels-20", 3
    train, _ = standardised(key, seed)
    model = network(derive_seed(seed, "scoring"))
    seen = {"loss": [], "margin": [], "el2n": [], "right": [], "input": [], "weights": []}

    class Look(Callback):
        def on_epoch_end(self, run, result) -> None:
            model.eval()
            with torch.no_grad():
                logits = model(train.inputs).double()
            pairs = (model, train.inputs, train.targets)
            seen["input"].append(input_gradient_norms(*pairs).double())
            seen["weights"].append(parameter_gradient_norms(*pairs).double())
            model.train()
            own = logits.gather(1, train.targets[:, None])[:, 0]
            others = logits.scatter(1, train.targets[:, None], -torch.inf).amax(1)
            one_hot = torch.eye(10).double()[train.targets]
            seen["loss"].append(logits.logsumexp(1) - own)
            seen["margin"].append(own - others)
            seen["el2n"].append((logits.softmax(1) - one_hot).norm(dim=1))
            seen["right"].append(logits.argmax(1) == train.targets)

    tape = TapeRecorder()
    optimizer = partial(torch.optim.SGD, lr=Config().scoring_learning_rate)
    Trainer(
        model, optimizer, epochs=5, batch_size=10, seed=derive_seed(seed, "scoring"),
        device="cpu", callbacks=[tape, Look()],
    ).fit(train)  # fmt: skip
    assert tape.tape is not None
    norms = loss_sensitivity(tape.tape, (train.inputs, train.targets), at=[12, 24, 30]).double()
    history = {name: torch.stack(values).double() for name, values in seen.items()}
    events = []
    for right in history["right"].T.bool().tolist():
        lost = sum(a and not b for a, b in pairwise(right))
        events.append(lost if any(right) else 5)
    expected = {
        "loss_sensitivity": norms.mean(0),
        "input_gradient_norm": history["input"].mean(0),
        "grand": history["weights"].mean(0),
        "el2n": history["el2n"].mean(0),
        "aum": history["margin"].mean(0),
        "csl": history["loss"].sum(0),
        "forgetting_events": torch.tensor(events),
    }
    table = table_of(folder, key, seed)
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values.numpy(), rtol=1e-4, err_msg=column)


def by_hand(subset, table, n, seed):
    """The examples of a part, by sorting."""
    left = round((1 - subset.share) * n)
    if subset.score is None:
        return None
    _, column, sign = METHODS[subset.score]
    tie = torch.randperm(n, generator=generator(seed, "ties", subset.score)).argsort().tolist()
    order = sorted(range(n), key=lambda i: (sign * float(table[column][i]), tie[i]))
    begin = {"hardest": 0, "easiest": n - left}.get(subset.kind)
    begin = round(subset.position * n) if begin is None else begin
    return sorted(order[begin : begin + left])


def test_accuracies_are_those_of_networks_trained_by_hand_on_what_is_left(folder, rows):
    key, seed = "random-labels-40", 3
    train, validation = standardised(key, seed)
    table = table_of(folder, key, seed)
    config = Config(**json.loads((folder / "config.json").read_text())["settings"])
    ranks = {method: hardness_ranks(table, method, seed) for method in METHODS}
    lines = [row for row in rows if (row["condition"], row["seed"]) == (key, seed)]
    lines = [row for row in lines if row["kind"] not in ("scoring", "detection")]
    corrupted = train.is_corrupted.sum().item()
    for subset, line in zip(subsets(config), lines, strict=True):
        assert {name: line[name] for name in subset._fields} == subset._asdict()
        kept = indices_of(subset, ranks, 60, seed)
        expected = by_hand(subset, table, 60, seed)
        assert expected is None or kept.tolist() == expected
        if subset.share:
            lost = corrupted - train.is_corrupted[kept].sum().item()
            assert line["corrupted_dropped"] == pytest.approx(lost / (60 - len(kept)))
        # One network at a time, by another engine.
        (results,) = train_ensemble(
            [Member(network(seed), train.subset(kept), seed, config.learning_rate)],
            epochs=4, batch_size=10, updates_per_epoch=6, momentum=config.momentum,
            validation=validation, engine="loop", device="cpu",
        )  # fmt: skip
        assert line["loss"] == pytest.approx(results[-1].loss, rel=1e-3)
        # One example may fall on the other side by rounding.
        assert line["validation_accuracy"] == pytest.approx(
            results[-1].validation_accuracy, abs=1.5 / 30
        )


def test_areas_are_shares_of_pairs_and_precision_is_of_the_hardest(folder, rows):
    key, seed = "random-labels-20", 0
    table = table_of(folder, key, seed)
    wrong = table["is_corrupted"]
    for row in rows:
        if row["kind"] != "detection":
            continue
        if row["condition"] == "real":
            assert row["auroc"] is row["precision"] is None
        if (row["condition"], row["seed"]) != (key, seed):
            continue
        _, column, sign = METHODS[row["score"]]
        values = sign * table[column]
        pairs = [(a > b) + (a == b) / 2 for a in values[wrong] for b in values[~wrong]]
        assert row["auroc"] == pytest.approx(np.mean(pairs))
        hardest = hardness_ranks(table, row["score"], seed).numpy() >= 60 - 12
        assert row["precision"] == pytest.approx(wrong[hardest].mean())


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert len(verdicts) == 7 * 3 * 4 + 3 * 3
    assert [v["claim"] for v in verdicts if "loss sensitivity" in v["statement"]] == ["C9"] * 21

    def accuracy(key, seed, kind, score, share):
        names = ("condition", "seed", "kind", "score", "share")
        return np.mean(
            [
                row["validation_accuracy"]
                for row in rows
                if tuple(row.get(name) for name in names) == (key, seed, kind, score, share)
            ]
        )

    def effects(key, kind, share, reference):
        return [
            accuracy(key, seed, kind, "sensitivity", share) - accuracy(key, seed, *reference)
            for seed in (0, 3)
        ]

    # Ten per cent is none of the shares here.
    for number, (key, share) in enumerate(zip(KEYS, (0.2, 0.2, 0.2, 0.4), strict=True)):
        random, full = ("random", None, share), ("full", None, 0.0)
        for place, expected in (
            (number, effects(key, "hardest", share, random)),
            (4 + number, effects(key, "hardest", share, full)),
            (8 + number, np.add(effects(key, "easiest", share, random), 0.01)),
        ):
            wanted = judge("C9", "", np.array(expected, np.float64))
            assert verdicts[place]["effect"] == pytest.approx(wanted.effect)
            assert verdicts[place]["low"] == pytest.approx(wanted.low)
            assert f"{100 * share:.0f}% of the examples" in verdicts[place]["about"]


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    for verdict in json.loads((folder / "verdicts.json").read_text()):
        if verdict["claim"] == "C9":
            assert f"<td>- {verdict['about']}</td>" in page
            assert verdict["statement"].split(" (")[0] in page


def test_killed_and_resumed_ends_in_the_same_folder(folder, tmp_path, contents, killed):
    out = tmp_path / "killed"
    killed(6, command(out))
    assert not (out / "report.html").exists()
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_summary_reads_the_folder_again(folder):
    config = Config(**json.loads((folder / "config.json").read_text())["settings"])
    opened = RunFolder.open(folder, "pruning", config.as_json(), "cpu")
    outcomes = summarise(opened, config, prepare(config)).outcomes
    gain = outcomes.gain(CONDITIONS[1], "window", "csl", 0.5, 0.5)
    assert gain.shape == (2,)
