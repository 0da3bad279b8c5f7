"""The actor for Ray Data."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from memtools.integrations.ray import ScoreBatches
from memtools.scoring import SCORES, read
from tests.scoring import factories

COLUMNS: dict[str, Any] = {"input": "image", "target": "label"}


def batch(**more):
    data = factories.data()
    columns = {"label": data.targets.numpy(), "image": data.inputs.numpy(), **more}
    for values in columns.values():
        values.setflags(write=False)  # as Ray's are
    return columns


def test_scores_are_those_of_a_folder(undisturbed):
    expected = read(undisturbed(4))
    actor = ScoreBatches(factories.model, **factories.SEARCH, device="cpu", **COLUMNS)
    columns = batch(name=np.array([f"n{i}" for i in range(factories.SIZE)]))
    found = actor(columns)
    assert list(found) == ["label", "name", *SCORES]
    assert found["name"] is columns["name"]
    for name in SCORES:
        # Another batch size.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_no_rows_have_the_same_columns():
    actor = ScoreBatches(factories.model(), radius=0.1, device="cpu", **COLUMNS)
    some = actor(batch())
    none = actor({name: values[:0] for name, values in batch().items()})
    assert {n: v.dtype for n, v in none.items()} == {n: v.dtype for n, v in some.items()}
    assert all(len(values) == 0 for values in none.values())


def test_what_is_wrong_is_named():
    actor = ScoreBatches(factories.model, scores=["loss"], device="cpu", **COLUMNS)
    with pytest.raises(ValueError, match=r"no column 'label', got image; name the columns"):
        actor({"image": np.zeros((1, 1, 6, 6))})
    with pytest.raises(ValueError, match="has a column 'loss' already"):
        actor(batch(loss=np.zeros(50)))
    ragged = np.empty(2, object)
    with pytest.raises(ValueError, match="one shape in column 'image'"):
        actor({"image": ragged, "label": np.zeros(2, np.int64)})
    with pytest.raises(TypeError, match="got list"):
        ScoreBatches(cast("Any", factories.no_model))


def test_ray_runs_it():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("ray.data", reason="ray is not installed")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        data = factories.data()
        rows = [{"image": x.numpy(), "label": int(y), "place": place} for x, y, place in data]
        scored = ray.data.from_items(rows).map_batches(
            ScoreBatches,
            fn_constructor_args=(torch.nn.Sequential(factories.model()),),
            fn_constructor_kwargs={"scores": ["margin"], "device": "cpu", **COLUMNS},
            batch_size=16,
            concurrency=1,
        )
        found = {row["place"]: row["margin"] for row in scored.take_all()}
    finally:
        ray.shutdown()
    actor = ScoreBatches(factories.model, scores=["margin"], device="cpu", **COLUMNS)
    expected = actor(batch())["margin"]
    ordered = [found[place] for place in range(factories.SIZE)]
    np.testing.assert_allclose(ordered, expected, rtol=1e-5, atol=1e-5)
