"""The study of easy examples, run small but whole, through its command line."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from memtools import cli, seeds
from memtools.data import in_memory, load, random_inputs
from memtools.models import MLP
from memtools.report.figures.easy_examples import FIGURES
from memtools.studies.easy_examples import Config, prepare, run, summarise
from memtools.studies.easy_examples.spread import binomial_range, over_dispersion
from memtools.studies.folder import read_parquet
from memtools.training import Trainer

SMALL = [
    "--train-size", "60", "--validation-size", "20", "--networks", "7", "--epochs", "2",
    "--width", "8", "--batch-size", "10",
]  # fmt: skip


def command(out, *more):
    return ["study", "easy-examples", *SMALL, "--seeds", "0", "3", "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "run"
    assert cli.main(command(path)) == 0
    return path


def test_shares_are_those_of_networks_that_are_trained_alone(folder):
    split = load("digits", train_size=60, validation_size=20)
    train = in_memory(random_inputs(in_memory(split.train), 1.0, seed=3))
    right = torch.zeros(60, dtype=torch.float64)
    for number in range(7):
        seed = seeds.derive_seed(3, "network", number)
        with seeds.seeded(seed, "weights"):
            model = MLP((1, 8, 8), 10, width=8)
        sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        Trainer(model, sgd, epochs=2, batch_size=10, seed=seed, device="cpu").fit(train)
        right += model(train.inputs).argmax(1) == train.targets
    table = read_parquet(folder / "examples" / "random-inputs-100-seed3.parquet")
    assert table["label"] == train.targets.tolist()
    assert table["share_right"] == pytest.approx((right / 7).tolist())


def test_lines_are_about_the_shares_in_the_folder(folder, rows):
    assert len(rows) == 6
    for row in rows:
        name = f"{row['condition']}-seed{row['seed']}"
        table = read_parquet(folder / "examples" / f"{name}.parquet")
        p = np.array(table["share_right"])
        mean = p.mean()
        expected = np.mean((p - mean) ** 2) / (mean * (1 - mean) / 7)
        assert row["over_dispersion"] == pytest.approx(expected)
        assert row["always_right"] == np.mean(p == 1)
        assert row["never_right"] == np.mean(p == 0)
        assert row["unanimous_by_chance"] == pytest.approx(mean**7 + (1 - mean) ** 7)
        labels = np.array(table["label"])
        found = varied = 0.0
        for label in set(labels):
            own = p[labels == label]
            found += ((own - own.mean()) ** 2).sum()
            varied += len(own) * own.mean() * (1 - own.mean()) / 7
        varied *= (60 - len(set(labels)) + 1) / 60
        within = row["over_dispersion_within_classes"]
        assert within is None if varied == 0 else within == pytest.approx(found / varied)
    assert any(row["over_dispersion_within_classes"] is not None for row in rows)


def test_independent_draws_have_an_over_dispersion_of_one_within_the_papers_range():
    low, high = binomial_range(0.3, 1000, 100, seed=0)
    assert (low, high) == pytest.approx((0.89, 1.11), abs=0.02)
    draw = np.random.default_rng(1)
    shares = draw.binomial(100, 0.3, 1000) / 100
    groups = draw.integers(0, 10, 1000)
    assert low < over_dispersion(shares, 100) < high
    assert low < over_dispersion(shares, 100, groups) < high
    # Where classes differ and nothing else, it is above one, and one within classes.
    of_class = draw.uniform(0.1, 0.9, 10)[groups]
    shares = draw.binomial(100, of_class) / 100
    assert over_dispersion(shares, 100) > 5
    assert low < over_dispersion(shares, 100, groups) < high


def test_verdicts_are_about_the_numbers_in_the_folder(folder, rows):
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert {v["claim"] for v in verdicts} == {"C1"}
    found = {(r["condition"], r["seed"]): r["over_dispersion"] for r in rows}
    effects = [np.log(found["real", s] / found["random-labels-100", s]) for s in (0, 3)]
    assert verdicts[0]["effect"] == pytest.approx(np.mean(effects))
    assert verdicts[0]["n"] == 2
    found = {
        (r["condition"], r["seed"]): r["over_dispersion_within_classes"] or np.nan for r in rows
    }
    for number, (more, less) in (
        (1, ("real", "random-labels-100")),
        (3, ("random-labels-100", "random-inputs-100")),
    ):
        effect = np.mean([np.log(found[more, s] / found[less, s]) for s in (0, 3)])
        assert verdicts[number]["about"] == "among examples of one label"
        # None where the networks agree on all examples of each label.
        assert verdicts[number]["effect"] == (None if np.isnan(effect) else pytest.approx(effect))


def test_a_run_that_was_killed_ends_in_the_same_files(folder, tmp_path, killed, contents):
    out = tmp_path / "run"
    for moment in (3, 4, 6):
        killed(moment, command(out, "--resume"))
    assert cli.main(command(out, "--resume")) == 0
    assert contents(out) == contents(folder)


def test_report_needs_no_other_file_and_no_network(folder, check_page):
    check_page(folder, FIGURES, Config)
    page = (folder / "report.html").read_text()
    assert "Easiest and hardest examples" in page
    assert page.index("<h3>Easiest") < page.index("<h3>Hardest")


def test_sentences_say_no_more_than_the_numbers(tmp_path, rewrite):
    """Noise that spreads like real data, and networks that are all wrong."""
    config = Config(train_size=20, validation_size=10, networks=3, width=3, seeds=(0, 1))
    data = prepare(config)
    finished = run(config, tmp_path / "run", data=data)
    rows = finished.rows()
    for row in rows:
        is_inputs = row["condition"] == "random-inputs-100"
        row |= {"over_dispersion": 9.0 if is_inputs else 3.0, "always_right": 0.0}
        row |= {"never_right": 0.25, "binomial_high": 1.5}
    rewrite(tmp_path / "run", rows)
    summary = summarise(finished, config, data)
    text = dict(sentence.split(": ", 1) for sentence in summary.sentences)
    assert "3 times as much over real examples" in text["Spread"]
    assert "9 times with random inputs" in text["Spread"]
    assert "all get 0% of the real examples right and none gets 25% right" in text["Agreement"]
    _, verdicts = summary.tables
    found = [row[2] for row in verdicts.rows if row[0] == "- all examples"]
    # Real against random labels is the same number twice, of which there is no more to say.
    assert found == ["undecided", "does not hold", "does not hold"]


def test_no_network_right_on_anything_gives_no_ratio(tmp_path, rewrite):
    config = Config(train_size=20, validation_size=10, networks=2, width=3, seeds=(0, 1))
    data = prepare(config)
    finished = run(config, tmp_path / "run", data=data)
    rows = [row | {"over_dispersion": None, "binomial_high": None} for row in finished.rows()]
    rewrite(tmp_path / "run", rows)
    _, verdicts = summarise(finished, config, data).tables
    assert {r[2] for r in verdicts.rows if r[0] == "- all examples"} == {"undecided"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": 1}, "networks must be at least 2, got 1"),
        ({"engine": "auto"}, "engine must be one of fused, vmap, loop, got 'auto'"),
        ({"model": "tiny-mlp"}, "engine must be vmap or loop for model tiny-mlp, got 'fused'"),
        ({"precision": "bfloat16"}, "precision must be one of float32, float64"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **settings)
