"""What a folder of scores survives, what it refuses, and who can read it."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from memtools.data import Tensors
from memtools.scoring import read, score
from tests.scoring import factories


def stamps(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}


def test_a_kill_at_any_moment_costs_no_bit(undisturbed, contents, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("forks are needed")
    command = [sys.executable, "-m", "tests.scoring.killed", str(tmp_path / "out"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2
    expected, found = undisturbed(4), tmp_path / "out"
    assert contents(found) == contents(expected)
    table, again = read(expected), read(found)
    for name, values in table.items():
        np.testing.assert_array_equal(again[name], values)
    left = {p.name for p in found.iterdir()} - contents(found).keys()
    assert left == {"_about.json", ".lock"}


def test_only_what_is_missing_or_torn_is_done(filled, contents):
    folder, go_on = filled
    expected, before = contents(folder), stamps(folder)
    torn = {
        3: lambda p: p.unlink(),
        5: lambda p: os.truncate(p, p.stat().st_size - 1),
        6: lambda p: os.truncate(p, p.stat().st_size // 2),
        7: lambda p: os.truncate(p, 0),
        8: lambda p: p.write_bytes((folder / "part-000009.parquet").read_bytes()),
        12: lambda p: p.write_bytes((folder / "part-000000.parquet").read_bytes()),
    }
    for chunk, harm in torn.items():
        harm(folder / f"part-{chunk:06d}.parquet")
    # What a killed process leaves behind.
    (folder / ".part-000003.parquet.tmp").write_bytes(b"PAR1")
    done = go_on()
    assert (done.chunks, done.examples) == (6, 22)
    assert contents(folder) == expected
    after = stamps(folder)
    redone = {f"part-{chunk:06d}.parquet" for chunk in torn}
    assert {name for name in before if after[name] != before[name]} == redone
    assert not (folder / ".part-000003.parquet.tmp").exists()


def test_a_whole_folder_is_left_alone(filled):
    folder, go_on = filled
    before = stamps(folder)
    assert go_on().chunks == 0
    assert stamps(folder) == before


def test_the_order_in_which_chunks_go_missing_is_all_the_same(filled, contents):
    folder, go_on = filled
    expected = contents(folder)
    moments = random.Random(0)
    for _ in range(3):
        for name in moments.sample(sorted(expected), 7):
            (folder / name).unlink()
        go_on()
        assert contents(folder) == expected


def shifted(data):
    return Tensors(data.inputs + 1e-3, data.targets)


OTHERS = {
    "scores": ({"scores": ["loss"]}, ["scores", "'correct'"]),
    "radius": ({"radius": 0.5}, ["scores", "is_critical"]),
    "batch size": ({"batch_size": 3}, ["batch_size 2, got 3"]),
    "chunk size": ({"chunk_size": 8}, ["chunk_size 4, got 8"]),
    "threads": ({"threads": 2}, ["threads 1, got 2"]),
    "dtype": ({"model": factories.model().double()}, ["dtype 'float32', got 'float64'"]),
    "weights": ({"model": factories.other_model()}, ["weights"]),
    "frozen": ({"model": factories.model().requires_grad_(False)}, ["weights"]),
    "class": ({"model": torch.nn.Sequential().append(factories.model())}, ["weights"]),
    "examples": ({"data": shifted(factories.data())}, ["examples"]),
    "number": ({"data": factories.data().subset(torch.arange(49))}, ["num_examples 50, got 49"]),
    "factory": ({"about": {"model": "a:b", "data": "Tensors"}}, ["'Sequential', got 'a:b'"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_settings_are_refused_by_name(kind, filled, contents):
    folder, go_on = filled
    before = contents(folder)
    options, parts = OTHERS[kind]
    with pytest.raises(ValueError, match="holds scores with") as caught:
        go_on(**options)
    for part in parts:
        assert part in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["torch", "memtools", "device"])
def test_another_version_or_device_is_refused(name, filled):
    folder, go_on = filled
    about = json.loads((folder / "_about.json").read_text())
    (about if name == "device" else about["versions"])[name] = "old"
    (folder / "_about.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"{name} 'old', got"):
        go_on()


def test_scores_are_not_gone_on_with_unasked(filled):
    _, go_on = filled
    with pytest.raises(ValueError, match="holds scores already; add --resume"):
        go_on(resume=False)


@pytest.mark.parametrize("about", [None, "{", "{}", "[]", '{"study": "csr", "settings": {}}'])
def test_a_folder_of_something_else_is_refused(about, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    if about is not None:
        (tmp_path / "_about.json").write_text(about)
    for call in (
        lambda: score(factories.model(), factories.data(), tmp_path),
        lambda: read(tmp_path),
    ):
        with pytest.raises(ValueError, match="exists and is no folder of scores"):
            call()
    with pytest.raises(ValueError, match="cannot be written"):
        score(factories.model(), factories.data(), tmp_path / "thesis.tex" / "below")


def test_two_launches_do_not_write_to_one_folder(filled):
    folder, go_on = filled
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_SH)\n"
        "print('taken', flush=True); sys.stdin.read()"
    )
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", program, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="in use by another process"):
            go_on()
    assert go_on().chunks == 0


def test_read_says_what_is_missing_or_damaged(filled, tmp_path):
    folder, _ = filled
    with pytest.raises(ValueError, match=r"columns must be of index, target, loss.*got aum"):
        read(folder, ["aum"])
    with pytest.raises(ValueError, match="holds no scores"):
        read(tmp_path / "nowhere")
    damaged = folder / "part-000004.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(ValueError, match="part-000004"):
        read(folder)
    damaged.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 13 chunks \(first: part-000004.parquet\)"):
        read(folder)


def test_pandas_reads_the_same(undisturbed):
    folder = undisturbed(4)
    table = read(folder)
    pandas = pytest.importorskip("pandas")
    found = pandas.read_parquet(folder)
    assert list(found) == list(table)
    for name, values in table.items():
        np.testing.assert_array_equal(found[name], values)
    assert found["is_critical"].dtype == bool


def test_polars_reads_the_same(undisturbed):
    polars = pytest.importorskip("polars")
    found = polars.read_parquet(undisturbed(4) / "*.parquet")
    for name, values in read(undisturbed(4)).items():
        np.testing.assert_array_equal(found[name].to_numpy(), values)


def test_duckdb_reads_the_same(undisturbed):
    duckdb = pytest.importorskip("duckdb")
    query = f"select * from '{undisturbed(4)}/*.parquet' order by index"
    found = duckdb.sql(query).fetchnumpy()
    for name, values in read(undisturbed(4)).items():
        np.testing.assert_array_equal(found[name], values)


def test_what_could_not_be_searched_is_null(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    score(factories.model(), factories.spoilt_data(), tmp_path, radius=0.1, scores=[])
    column = parquet.read_table(next(tmp_path.glob("*.parquet")))["is_critical"].to_pylist()
    assert [i for i, value in enumerate(column) if value is None] == [factories.SPOILT]
    assert np.isnan(read(tmp_path)["is_critical"]).nonzero()[0].tolist() == [factories.SPOILT]
