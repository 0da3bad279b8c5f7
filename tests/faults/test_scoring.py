"""A folder of scores whose disk is full, whose files are damaged or forged; a clock that errs."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memtools.data import Tensors
from memtools.scoring import read, score

DATA = Tensors(torch.rand(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2)
MODEL: Any = torch.nn.Linear(3, 2, dtype=torch.float64)
with torch.no_grad():
    MODEL.weight.copy_(torch.arange(6).view(2, 3) / 7)
    MODEL.bias.zero_()


def filled(out: Path) -> Path:
    score(MODEL, DATA, out, scores=["loss", "correct"], batch_size=2, chunk_size=4)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.parquet")}


def test_a_full_disk_is_told_by_the_name_of_a_file_and_costs_no_chunk(small_disk, tmp_path):
    folder, fill = small_disk
    out = folder / "out"
    for room in (0, 4_096, 8_192):
        fill(but=room)
        with pytest.raises((OSError, ValueError), match=r"No space left|cannot be written") as told:
            filled(out)
        assert str(out) in str(told.value)
        assert not list(folder.rglob("*.tmp"))
        (folder / "filler").unlink()
    before = contents(out)
    assert 0 < len(before) < 6
    filled(out)
    whole = contents(filled(tmp_path / "whole"))
    assert contents(out) == whole
    assert before.items() <= whole.items()


def test_a_read_only_folder_is_named_and_can_be_read(tmp_path, frozen):
    out = filled(tmp_path / "out")
    frozen(out)
    with pytest.raises(ValueError, match=r"out .* cannot be written"):
        filled(out)
    assert len(read(out)["loss"]) == 24


FORGED = {
    "settings": {"chunk_size": [0, -4, "4", None, 1.5], "scores": [5, None, ["x"], "loss"]},
    "facts": {"num_examples": [0, -1, 10**18, "9", None]},
}


@pytest.mark.parametrize(("part", "name"), [(p, n) for p, names in FORGED.items() for n in names])
def test_forged_descriptions_are_refused(part, name, tmp_path):
    out = filled(tmp_path / "out")
    about = json.loads((out / "_about.json").read_text())
    for value in FORGED[part][name]:
        forged = about | {part: about[part] | {name: value}}
        (out / "_about.json").write_text(json.dumps(forged))
        with pytest.raises(ValueError, match="is no folder of scores"):
            read(out)


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "folder"])
def test_a_damaged_chunk_is_made_again(how, tmp_path):
    out = filled(tmp_path / "out")
    whole = contents(out)
    path = out / "part-000002.parquet"
    new = {"cut": whole[path.name][:-9], "empty": b"", "noise": b"x" * 999}
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        path.write_bytes(new[how])
    with pytest.raises(ValueError, match=r"lacks 1 of 6 chunks \(first: part-000002"):
        read(out)
    if how == "folder":
        with pytest.raises(OSError, match="part-000002"):
            filled(out)
        path.rmdir()
    filled(out)
    assert contents(out) == whole


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, monkeypatch):
    whole = contents(filled(tmp_path / "whole"))
    out = filled(tmp_path / "out")
    (out / "part-000001.parquet").unlink()
    for number, path in enumerate(sorted(out.iterdir())):
        os.utime(path, (4e9 - number, 4e9 - number))  # in 2096, the last one first
    moments = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments) * 10**9)
    filled(out)
    assert contents(out) == whole
    np.testing.assert_array_equal(read(out)["index"], np.arange(24))
