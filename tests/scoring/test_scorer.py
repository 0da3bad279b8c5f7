"""The scores are those of the library's functions for one example after the other."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import memtools
from memtools.data import Tensors
from memtools.scoring import SCORES, Scorer, Wanted, read, score
from tests.scoring import factories

NUMBERS = [name for name in SCORES if name not in ("prediction", "correct", "is_critical")]


def naive(model, data, **search):
    model = copy.deepcopy(model).eval()
    rows = []
    for i in range(len(data)):
        x, y = data[i][0][None], data[i][1][None]
        with torch.no_grad():
            logits = model(x)
        p = logits.double().softmax(1)
        rows.append(
            {
                "prediction": logits.argmax(1),
                "loss": memtools.scores.loss(logits, y),
                "confidence": memtools.scores.confidence(logits, y),
                "el2n": memtools.scores.el2n(logits, y),
                "margin": memtools.scores.margin(logits, y),
                "correct": memtools.scores.correctness(logits, y),
                "entropy": -(p * p.log()).sum(1),
                "input_gradient_norm": memtools.input_gradient_norms(model, x, y),
                "parameter_gradient_norm": memtools.parameter_gradient_norms(model, x, y),
                "is_critical": memtools.find_critical(model, x, **search).is_critical,
            }
        )
    return {name: np.concatenate([row[name].numpy() for row in rows]) for name in SCORES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["lass", "auto"])
def test_scores_are_those_of_the_naive_loop(dtype, method, tmp_path):
    model, data = factories.model().to(dtype), factories.data().to("cpu", dtype)
    search = {"radius": factories.RADIUS, "method": method, "bounds": (0.0, 1.0)}
    expected = naive(model, data, **search)
    score(model, data, tmp_path, batch_size=7, chunk_size=20, **search)
    found = read(tmp_path)
    assert list(found) == ["index", "target", *SCORES]
    assert found["index"].tolist() == list(range(len(data)))
    assert found["target"].tolist() == data.targets.tolist()
    for name in ("prediction", "correct", "is_critical"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert 0 < found["is_critical"].mean() < 1
    for name in NUMBERS:
        assert found[name].dtype == str(dtype).removeprefix("torch.")
        # Batches of other sizes are summed in another order.
        bound = torch.finfo(dtype).eps * 500
        np.testing.assert_allclose(
            found[name], expected[name], rtol=bound, atol=bound, err_msg=name
        )


def test_the_model_and_the_random_state_are_left_alone(tmp_path):
    model = factories.model()
    model[1].eval()
    model[-1].bias.grad = torch.ones(4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    threads = torch.get_num_threads()
    score(model, factories.data(), tmp_path, **factories.SEARCH, threads=2)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert torch.equal(model[-1].bias.grad, torch.ones(4))
    assert model[0].weight.grad is None
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("bounds", [None, (0, 1)])
def test_an_example_that_is_nan_does_not_stop_the_others(bounds, tmp_path, capsys):
    model = factories.model()
    options = {**factories.SEARCH, "bounds": bounds, "batch_size": 8, "progress": True}
    score(model, factories.data(), tmp_path / "good", **options)
    capsys.readouterr()
    done = score(model, factories.spoilt_data(), tmp_path / "spoilt", **options)
    assert done.not_finite == 1
    assert (
        f"1 of 50 examples have scores that are NaN or infinite (first: example {factories.SPOILT})"
        in (capsys.readouterr().err)
    )
    good, spoilt = read(tmp_path / "good"), read(tmp_path / "spoilt")
    others = np.arange(50) != factories.SPOILT
    for name in SCORES:
        np.testing.assert_allclose(
            spoilt[name][others], good[name][others], rtol=1e-4, err_msg=name
        )
    assert spoilt["prediction"][~others] == -1
    assert not spoilt["correct"][~others]
    for name in (*NUMBERS, "is_critical"):
        assert np.isnan(spoilt[name][~others]), name


def test_a_search_that_meets_no_finite_logits_spoils_the_search_alone():
    class Cliff(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

        def forward(self, x):
            return x * self.weight / ((x - 1.7).abs() > 0.15)  # infinite around 1.7

    inputs = torch.tensor([[0.5], [1.9], [0.01]])
    scorer = Scorer(Cliff(), Wanted.of(None, radius=0.3))
    found = scorer(inputs, torch.zeros(3).long())
    assert np.isfinite(found["loss"]).all()
    np.testing.assert_array_equal(found["is_critical"], [0, np.nan, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_data_of_every_kind_gives_the_same_bits(workers, tmp_path):
    data = factories.data()
    pairs = [(x.numpy(), int(y), "more", None) for x, y, _ in data]
    sizes: dict[str, Any] = {"batch_size": 8, "chunk_size": 20}
    score(factories.model(), data, tmp_path / "tensors", **sizes)
    score(factories.model(), pairs, tmp_path / "pairs", workers=workers, **sizes)
    expected, found = read(tmp_path / "tensors"), read(tmp_path / "pairs")
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_tokens_are_scored_through_their_embedding(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    data = Tensors(torch.randint(9, (6, 3)), torch.randint(3, (6,)))
    score(model, data, tmp_path, radius=0.1, embedding="0")
    expected = memtools.gradient_norms(model, data.inputs, data.targets, embedding="0")
    found = read(tmp_path)
    np.testing.assert_array_equal(found["input_gradient_norm"], expected.inputs)
    np.testing.assert_array_equal(found["parameter_gradient_norm"], expected.parameters)
    assert set(found["is_critical"]) <= {0, 1}


X, ONE = torch.zeros(1, 6, 6), (torch.zeros(1, 6, 6), 0)
BAD = {
    "loader": (
        lambda: DataLoader(TensorDataset(X)),
        TypeError,
        ["DataLoader", ".dataset"],
    ),
    "stream": (lambda: iter([ONE]), TypeError, ["map-style", "iterator"]),
    "empty": (list, ValueError, ["empty"]),
    "no target": (lambda: [X], ValueError, ["(input, target)", "Tensor", "example 0"]),
    "image": (lambda: [("image", 0)], ValueError, ["tensors", "str", "ToTensor"]),
    "soft target": (lambda: [(X, torch.ones(4))], ValueError, ["class numbers", "(4,)"]),
    "float target": (lambda: [(X, 0.5)], ValueError, ["class numbers", "float"]),
    "target": (lambda: [ONE] * 9 + [(X, 4)], ValueError, ["examples 8 to 9", "0..3", "4"]),
    "shapes": (lambda: [ONE, (X[:, :5], 0)], ValueError, ["one shape", "(1, 5, 6)", "example 1"]),
    "unreadable": (lambda: dict.fromkeys([3], ONE), TypeError, ["map-style", "dict"]),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_scored_are_named(kind, workers, tmp_path):
    make, error, parts = BAD[kind]
    with pytest.raises(error) as caught:
        score(factories.model(), make(), tmp_path, batch_size=2, workers=workers)
    for part in parts:
        assert part in str(caught.value)


def test_data_that_are_drawn_anew_each_time_are_refused(tmp_path):
    class Augmented(Tensors):
        def __getitem__(self, index):
            return torch.rand(1, 6, 6), torch.tensor(0), index

    data = Augmented(torch.zeros(3, 1, 6, 6), torch.zeros(3).long())
    with pytest.raises(ValueError, match="another example 0 each time"):
        score(factories.model(), data, tmp_path)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"scores": ["loss", "aum"]}, ["scores", "aum", "el2n"]),
        ({"scores": []}, ["scores", "empty"]),
        ({"scores": ["is_critical"]}, ["is_critical", "radius"]),
        ({"radius": 0}, ["radius", "positive"]),
        ({"radius": 1, "method": "best"}, ["method", "lass", "best"]),
        ({"radius": 1, "bounds": (0,)}, ["bounds", "1 values"]),
        ({"batch_size": 0}, ["batch_size", "at least 1", "0"]),
        ({"chunk_size": 0}, ["chunk_size", "at least 1"]),
        ({"threads": 0}, ["threads", "at least 1"]),
        ({"workers": -1}, ["workers", "-1"]),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_named(options, parts, tmp_path):
    with pytest.raises(ValueError, match=r".") as caught:
        score(factories.model(), factories.data(), tmp_path / "out", **options)
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_frozen_model_has_the_other_scores(tmp_path):
    model = factories.model().requires_grad_(False)
    with pytest.raises(ValueError, match=r"requires_grad.*leave it out of scores"):
        score(model, factories.data(), tmp_path)
    score(model, factories.data(), tmp_path, scores=["loss", "input_gradient_norm"])
    assert (read(tmp_path, ["input_gradient_norm"])["input_gradient_norm"] > 0).all()


def test_a_model_that_couples_examples_is_refused(tmp_path):
    class Coupled(nn.Linear):
        def forward(self, input):
            return super().forward(input.flatten(1) - input.flatten(1).mean(0))

    with pytest.raises(ValueError, match="couples"):
        score(Coupled(36, 4), factories.data(), tmp_path, scores=["loss"])
