"""What torchmetrics does with any metric, done with each of ours."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

import torchmetrics
from torch import nn

from memtools import metrics

BATCHES = [0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11]


def merged(first, second):
    first.merge_state(second)
    return first


def test_every_metric_is_among_the_cases(cases):
    assert {name.split()[0] for name in cases.MEASURES} == set(metrics.__all__)


def test_is_a_metric(measure):
    metric = measure.build()
    assert isinstance(metric, torchmetrics.Metric)
    assert metric.higher_is_better is None
    assert metric.is_differentiable is False
    assert metric.full_state_update is isinstance(metric, metrics.TimeToConvergence)


def test_state_does_not_grow(measure, cases):
    metric = cases.updated(measure.build(), measure, BATCHES[0])
    sizes = {name: value.shape for name, value in metric.metric_state.items()}
    cases.updated(metric, measure, *BATCHES)
    assert {name: value.shape for name, value in metric.metric_state.items()} == sizes


def test_the_model_is_not_kept(measure, cases):
    metric = cases.updated(measure.build(), measure, *BATCHES)
    assert list(metric.modules()) == [metric]
    assert list(metric.parameters()) == []
    assert not any(isinstance(value, nn.Module) for value in vars(metric).values())


def test_compute_before_update_warns_and_gives_nan(measure):
    with pytest.warns(UserWarning, match="called before the ``update`` method"):
        result = measure.build().compute()
    if isinstance(result, dict) and "is_censored" in result:
        assert result["is_censored"]
        assert result["epochs_run"] == 0
    else:
        values = result.values() if isinstance(result, dict) else [result]
        assert all(bool(value.isnan().all()) for value in values)


def test_reset_forgets(measure, cases):
    metric = cases.updated(measure.build(), measure, BATCHES[0])
    metric.compute()
    metric.reset()
    assert not metric.update_called
    cases.updated(metric, measure, *BATCHES[1:])
    expected = cases.updated(measure.build(), measure, *BATCHES[1:])
    cases.assert_same(metric.compute(), expected.compute())


def test_forward_gives_the_value_of_the_batch(measure, cases):
    metric = measure.build()
    for batch in BATCHES:
        value = metric(**measure.arguments(torch.tensor(batch)))
        alone = cases.updated(measure.build(), measure, batch)
        cases.assert_same(value, alone.compute())
    assert metric.update_count == 3
    expected = cases.updated(measure.build(), measure, *BATCHES)
    cases.assert_same(metric.compute(), expected.compute())


def test_forward_calls_the_model_once(measure, cases):
    arguments = measure.arguments(torch.tensor(BATCHES[0]))
    if "model" not in arguments:
        return
    counts = []
    for method in ("update", "forward"):
        calls, model = [], cases.network()
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        getattr(measure.build(), method)(**arguments | {"model": model})
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_merging_is_seeing_both(additive, cases):
    parts = [cases.updated(additive.build(), additive, batch) for batch in BATCHES]
    expected = cases.updated(additive.build(), additive, *BATCHES)
    parts[0].compute()  # a result that is kept must not outlive the merge
    whole = merged(merged(parts[0], parts[1]), parts[2])
    cases.assert_same(whole.compute(), expected.compute())
    assert whole.update_count == 3
    empty = merged(additive.build(), whole)
    cases.assert_same(empty.compute(), expected.compute())
    cases.assert_same(merged(additive.build(), whole.metric_state).compute(), expected.compute())
    cases.assert_same(merged(empty, additive.build()).compute(), expected.compute())


def test_merging_counts_a_shared_example_once(additive, cases):
    if not additive.counts_examples:
        return
    first = cases.updated(additive.build(), additive, [0, 1, 2, 3])
    second = cases.updated(additive.build(), additive, [2, 3, 4, 5])
    expected = cases.updated(additive.build(), additive, [0, 1, 2, 3, 4, 5])
    cases.assert_same(merged(first, second).compute(), expected.compute())


def test_merging_other_settings_is_refused(additive, cases):
    metric, other = cases.updated(additive.build(), additive, BATCHES[0]), additive.other()
    before = metric.compute()
    with pytest.raises(ValueError, match=r"must be the same in both metrics, got .* build both"):
        metric.merge_state(other)
    with pytest.raises(ValueError, match=r"settings must be the same in all metrics"):
        metric.merge_state(other.metric_state)
    with pytest.raises(ValueError, match="settings to be present"):
        metric.merge_state({"sums": metric.sums})
    broken = {**metric.metric_state, "counts": torch.zeros(7, 7)}
    with pytest.raises(ValueError, match=r"counts must have shape .* got \(7, 7\)"):
        metric.merge_state(broken)
    wrong_in_part = {**metric.metric_state, "counts": "many"}
    with pytest.raises(TypeError):
        metric.merge_state(wrong_in_part)
    cases.assert_same(metric.compute(), before)


def test_merging_another_class_is_refused():
    with pytest.raises(ValueError, match="instance of ScoreGini"):
        metrics.ScoreGini(3).merge_state(metrics.MisclassificationRate(3))


def test_copies_and_pickles_go_on_alone(measure, cases):
    metric = cases.updated(measure.build(), measure, BATCHES[0])
    before = metric.compute()
    expected = cases.updated(measure.build(), measure, *BATCHES).compute()
    for copied in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        cases.assert_same(copied.compute(), before)
        cases.assert_same(cases.updated(copied, measure, *BATCHES[1:]).compute(), expected)
        cases.assert_same(metric.compute(), before)


def test_state_goes_through_a_checkpoint(measure, cases, tmp_path):
    metric = cases.updated(measure.build(), measure, *BATCHES[:2])
    assert metric.state_dict() == {}  # as other torchmetrics, unless asked for
    metric.persistent(True)
    torch.save(nn.ModuleDict({"metric": metric}).state_dict(), tmp_path / "state.pt")
    loaded = measure.build()
    loaded.persistent(True)
    holder = nn.ModuleDict({"metric": loaded})
    holder.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert loaded.update_called
    cases.assert_same(loaded.compute(), metric.compute())
    expected = cases.updated(measure.build(), measure, *BATCHES)
    cases.assert_same(cases.updated(loaded, measure, BATCHES[2]).compute(), expected.compute())


def test_a_checkpoint_of_other_settings_is_refused(measure, cases):
    metric, other = cases.updated(measure.build(), measure, BATCHES[0]), measure.other()
    before = metric.compute()
    other.persistent(True)
    with pytest.raises(RuntimeError, match=r"settings: the state was saved by a metric with other"):
        metric.load_state_dict(other.state_dict())
    cases.assert_same(metric.compute(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to(dtype=torch.float16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: nn.ModuleList([m]).half(),
        lambda m: nn.ModuleList([m]).to(torch.bfloat16),
    ],
)
def test_other_dtypes_change_no_sum(measure, cases, change):
    metric = cases.updated(measure.build(), measure, BATCHES[0])
    dtypes = {name: value.dtype for name, value in metric.metric_state.items()}
    change(metric)
    assert {name: value.dtype for name, value in metric.metric_state.items()} == dtypes
    cases.updated(metric, measure, *BATCHES[1:])
    expected = cases.updated(measure.build(), measure, *BATCHES)
    cases.assert_same(metric.compute(), expected.compute())
    metric.reset()
    assert {name: value.dtype for name, value in metric.metric_state.items()} == dtypes


def test_states_move_to_another_device(measure):
    metric = measure.build().to("meta")
    assert metric.device.type == "meta"
    assert all(value.is_meta for value in metric.metric_state.values())
    metric.reset()
    assert all(value.is_meta for value in metric.metric_state.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_values_of_a_gpu(measure, cases):
    expected = cases.updated(measure.build(), measure, *BATCHES).compute()
    for place in ("cuda", "cpu"):
        metric = measure.build().to(place)
        for batch in BATCHES:
            arguments = measure.arguments(torch.tensor(batch))
            metric.update(**{name: value.to("cuda") for name, value in arguments.items()})
        result = metric.cpu().compute()
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_collection_keeps_unlike_metrics_apart(measure, cases):
    alone = [measure.build(), measure.build(), metrics.CriticalSampleRatio(0.05)]
    together = torchmetrics.MetricCollection(
        {"one": alone[0].clone(), "same": alone[1].clone(), "small": alone[2].clone()}
    )
    for batch in BATCHES:
        arguments = measure.arguments(torch.tensor(batch))
        search = cases.MEASURES["CriticalSampleRatio"].arguments(torch.tensor(batch))
        together.update(**search | arguments)
        for metric, given in zip(alone, (arguments, arguments, search), strict=True):
            metric.update(**given)
    assert [len(group) for group in together.compute_groups.values()] == [2, 1]
    results = dict(together.items())
    for name, metric in zip(("one", "same", "small"), alone, strict=True):
        cases.assert_same(results[name].compute(), metric.compute())
    together.reset()
    assert not results["one"].update_called


def test_a_collection_tells_two_radii_apart(cases):
    inputs, _ = cases.data()
    radii = {"small": 0.1, "large": 0.4}
    together = torchmetrics.MetricCollection(
        {name: metrics.CriticalSampleRatio(radius) for name, radius in radii.items()}
    )
    for part in inputs.split(4):
        together.update(model=cases.network(), inputs=part)
    found = together.compute()
    for name, radius in radii.items():
        expected = sum(cases.critical(range(cases.N), radius)) / cases.N
        assert float(found[name]) == pytest.approx(expected)
    assert found["small"] < found["large"]
    assert len(together.compute_groups) == 2


def test_a_collection_takes_all_by_name(cases):
    (inputs, targets), model = cases.data(), cases.network()
    together = torchmetrics.MetricCollection(
        [
            metrics.InputGradientGini(cases.N),
            metrics.ParameterGradientGini(cases.N),
            metrics.ClassSensitivity(cases.CLASSES),
            metrics.CriticalSampleRatio(cases.RADIUS),
            metrics.TimeToConvergence(),
        ]
    )
    everything = torch.arange(cases.N)
    logits = cases.logits()
    value = together(model=model, inputs=inputs, targets=targets, indices=everything, logits=logits)
    for name in ("InputGradientGini", "ParameterGradientGini", "ClassSensitivity"):
        measure = cases.MEASURES[name]
        expected = cases.updated(measure.build(), measure, everything.tolist()).compute()
        cases.assert_same(value[name], expected)
    assert len(together.compute_groups) == 5
    assert together.clone(prefix="val_").keys() == {f"val_{name}" for name in together}


def test_plot_draws(measure, cases):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = cases.updated(measure.build(), measure, *BATCHES)
    figure, axes = metric.plot()
    assert axes.has_data()
    pyplot.close(figure)
    figure, given = pyplot.subplots()
    drawn, axes = metric.plot(metric.compute(), ax=given)
    assert axes is given
    assert drawn is figure or drawn is None  # torchmetrics gives none for axes of the user's
    assert given.has_data()
    pyplot.close(figure)
    if isinstance(metric, metrics.InputGradientGini | metrics.CriticalSampleRatio):
        figure, axes = metric.plot([metric.compute(), metric.compute()])
        assert axes.get_ylim()[0] <= 0 < 1 <= axes.get_ylim()[1]
        pyplot.close(figure)


@pytest.mark.parametrize("reset_inside", [False, True])
def test_inference_mode_and_its_tensors(measure, cases, reset_inside):
    metric = measure.build()
    with torch.inference_mode():
        if reset_inside:
            metric.reset()
        arguments = measure.arguments(torch.tensor(BATCHES[0]))
        metric.update(**arguments)
        value = metric(**measure.arguments(torch.tensor(BATCHES[1])))
        metric.compute()
    cases.assert_same(value, cases.updated(measure.build(), measure, BATCHES[1]).compute())
    metric(**measure.arguments(torch.tensor(BATCHES[2])))
    expected = cases.updated(measure.build(), measure, *BATCHES)
    cases.assert_same(metric.compute(), expected.compute())


def test_a_model_in_a_data_parallel_wrapper_is_unwrapped(measure, cases, process_group):
    metric, expected = measure.build(), cases.updated(measure.build(), measure, *BATCHES)
    model = nn.parallel.DistributedDataParallel(cases.network())
    for batch in BATCHES:
        arguments = measure.arguments(torch.tensor(batch))
        metric.update(**arguments | ({"model": model} if "model" in arguments else {}))
    cases.assert_same(metric.compute(), expected.compute())


def test_the_model_is_left_as_it_was(measure, cases):
    arguments = measure.arguments(torch.tensor(BATCHES[0]))
    if "model" not in arguments:
        return
    model = cases.network().train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = [(p.detach().clone(), p.grad) for p in model.parameters()]
    state = torch.get_rng_state()
    metric = measure.build()
    metric.update(**arguments | {"model": model})
    metric(**arguments | {"model": model})
    metric.compute()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    for p, (value, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.grad is grad
        assert bool((grad == 1).all())
