"""The benchmarks that need another machine run through here, at sizes that say nothing."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


def rows_of(module, file, folder, *options) -> Any:
    command = [sys.executable, "-m", module, "--quick", "--results", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (folder / file).open() as text:
        return json.load(text) if file.endswith(".json") else list(csv.DictReader(text))


def test_gpu_benchmark_runs_on_a_cpu(tmp_path):
    rows = rows_of("bench.gpu", "gpu_cpu.csv", tmp_path, "--device", "cpu")
    ours = [row for row in rows if "memtools" in row["method"] or row["part"] == "search"]
    assert {row["status"] for row in ours} == {"ok"}
    assert {row["part"] for row in rows} == {"yardstick", "operator", "norms", "search"}
    assert all(float(row["milliseconds"]) > 0 for row in rows if row["status"] == "ok")
    norms = {row["case"]: row for row in rows if row["method"] == "parameter_gradient_norms"}
    assert {row["status"] for row in norms.values()} == {"ok"}
    assert {"resnet18", "GPT-2 small"} <= norms.keys()


def test_gpu_benchmark_says_that_there_is_no_gpu():
    command = [sys.executable, "-m", "bench.gpu"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=hidden
    )
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr


def test_a_ledger_in_a_folder_holds_what_it_was_given(tmp_path):
    found = rows_of("bench.ledger", "ledger.json", tmp_path)
    assert found["presentations"] == found["num_examples"] * found["epochs"]
    assert (
        0
        < found["share_of_a_step"]
        == pytest.approx(
            found["update_milliseconds"]["median"] / found["step_milliseconds"]["median"]
        )
    )


def test_operators_are_right_and_none_is_forgotten(tmp_path):
    from bench.operators_report import OPERATORS

    rows = rows_of("bench.operators", "operators.csv", tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["operator"] for row in rows} == OPERATORS.keys()


def test_every_engine_of_an_ensemble_is_timed(tmp_path):
    (case,) = rows_of("bench.ensemble", "ensemble.json", tmp_path)["cases"]
    for name in ("plain loop", "loop", "vmap", "fused", "auto"):
        times = [t for key, t in case["microseconds"].items() if key.split(",")[0] == name]
        assert times
        assert all(0 < t["p20"] <= t["median"] <= t["p80"] for t in times)


def test_floors_of_gradient_norms_run(tmp_path):
    rows = rows_of("bench.floors", "floors.csv", tmp_path, "--only", "linear-4d")
    ways = {row["way"] for row in rows}
    assert ways == {
        "pass to the inputs", "products of matrices", "parameter norms", "both norms",
        "step with the inputs' gradient", "watched step",
    }  # fmt: skip
    assert all(0 < float(row["ratio_p20"]) <= float(row["ratio_p80"]) for row in rows)


def test_the_matrix_is_right_and_says_who_is_not(tmp_path):
    rows = rows_of("bench.matrix", "matrix.csv", tmp_path, "--only", "forgetting events")
    assert [row["tool"] for row in rows] == ["memtools", "eager", "naive loop"]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(float(row["ratio_p20"]) <= float(row["ratio_p80"]) for row in rows)


def test_what_fails_in_the_matrix_is_kept_with_its_message():
    from bench.cases.inequality import OPERATIONS
    from bench.cases.operation import checked

    def refusing(problem):
        raise NotImplementedError("not for me")

    def missing(problem):
        raise ImportError("no such tool")

    operation = OPERATIONS["Gini coefficient"]
    ours = operation.ways["memtools"]
    ways = {
        "right": ours,
        "wrong": lambda problem: lambda: 1.001 * ours(problem)(),
        "NaN": lambda problem: lambda: torch.full((len(problem),), torch.nan),
        "refuses": refusing,
        "absent": missing,
    }
    operation = operation._replace(ways=ways)
    problem = operation.build(50)
    found = {way: checked(operation, problem, operation.oracle(problem), way) for way in ways}
    assert [outcome.status for outcome in found.values()] == [
        "ok", "wrong", "wrong", "refuses", "absent",
    ]  # fmt: skip
    assert found["wrong"].error == pytest.approx(1e-3, rel=0.01)
    assert found["refuses"].message == "NotImplementedError: not for me"


def test_growth_ends_by_memory_or_patience():
    from bench.growth import Limits, Point, in_fork

    def ended(way):
        limits = Limits(seconds=1, bytes=2**30)
        return in_fork(Point("", "", 1, ""), lambda: None, lambda problem: way, limits)

    def forever():
        while True:
            pass

    def large():
        torch.ones(2**30)

    assert ended(forever).status == "patience"
    assert ended(large).status == "memory"
    fine = ended(lambda: torch.ones(2**25))
    assert fine.status == "ok"
    assert fine.memory_mib == pytest.approx(128, abs=24)  # a fork's own pages come on top


def test_every_implementation_grows(tmp_path):
    rows = rows_of("bench.growth", "growth.csv", tmp_path, "--only", "values")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["implementation"] for row in rows} == {"memtools", "eager", "numpy", "naive loop"}


def test_an_operation_measured_anew_leaves_the_others_alone(tmp_path):
    from bench.gradient_norms import Row
    from bench.matrix import keep_operation

    for name, commit, ratio in [
        ("Gini coefficient", "old", 1.0),
        ("box search", "old", 2.0),
        ("Gini coefficient", "new", 3.0),
    ]:
        keep_operation(tmp_path, [Row(name, "memtools", ratio=ratio)], {"commit": commit})
    rows = list(csv.DictReader((tmp_path / "matrix.csv").read_text().splitlines()))
    assert [(row["problem"], row["ratio"]) for row in rows] == [
        ("box search", "2"),
        ("Gini coefficient", "3"),
    ]
    kept = json.loads((tmp_path / "matrix.json").read_text())["operations"]
    assert {name: about["commit"] for name, about in kept.items()} == {
        "box search": "old",
        "Gini coefficient": "new",
    }


def test_costs_are_measured_along_every_axis(tmp_path):
    found = rows_of("bench.scaling", "scaling.json", tmp_path)["exponents"]
    assert found.keys() == {"batch", "sequence", "width"}
    assert all(ways.keys() == {"plain", "memtools both"} for ways in found.values())
