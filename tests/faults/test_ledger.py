"""A ledger whose files are damaged, whose disk is full, or that two processes add to."""

import multiprocessing
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memtools import Ledger

FORK: Any = (
    multiprocessing.get_context("fork")
    if "fork" in multiprocessing.get_all_start_methods()
    else None
)


def filled(place: Path, updates: int = 5) -> Ledger:
    ledger = Ledger(50, place)
    for number in range(updates):
        add(ledger, number)
    return ledger


def add(ledger: Ledger, number: int) -> None:
    index = (torch.arange(7) + number) % 50
    ledger.update(index, loss=index + number)


def assert_as_if_nothing_had_happened(place: Path, updates: int) -> None:
    want = Ledger(50)
    for number in range(updates):
        add(want, number)
    np.testing.assert_array_equal(Ledger.open(place).history("loss"), want.history("loss"))


def _hold(place, connection):
    ledger = Ledger(50, place, resume=True)
    add(ledger, 5)
    connection.send("added")
    connection.recv()


@pytest.mark.skipif(FORK is None, reason="forks are needed")
def test_a_second_process_is_told_and_a_reader_is_not_kept_out(tmp_path):
    filled(tmp_path)
    ours, theirs = FORK.Pipe()
    other = FORK.Process(target=_hold, args=(tmp_path, theirs))
    other.start()
    ours.recv()
    ledger = Ledger(50, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"folder .*log-000000 is in use by another process"):
        add(ledger, 6)
    assert_as_if_nothing_had_happened(tmp_path, 6)
    ours.send("enough")
    other.join()
    ledger = Ledger(50, tmp_path, resume=True)
    add(ledger, 6)
    assert_as_if_nothing_had_happened(tmp_path, 7)


def _add_or_tell(ledger, connection):
    try:
        add(ledger, 5)
        connection.send("added")
    except ValueError as error:
        connection.send(str(error))


@pytest.mark.skipif(FORK is None, reason="forks are needed")
def test_a_process_that_was_forked_does_not_add_to_what_the_first_one_has(tmp_path):
    ledger = filled(tmp_path)
    ours, theirs = FORK.Pipe()
    worker = FORK.Process(target=_add_or_tell, args=(ledger, theirs))
    worker.start()
    assert "is in use by another process" in ours.recv()
    worker.join()
    add(ledger, 5)
    assert_as_if_nothing_had_happened(tmp_path, 6)


def test_of_two_ledgers_in_one_process_the_older_one_is_told(tmp_path):
    older = filled(tmp_path)
    newer = Ledger(50, tmp_path, resume=True)
    add(newer, 5)
    with pytest.raises(ValueError, match="has been added to by another ledger"):
        add(older, 6)
    add(newer, 6)
    assert_as_if_nothing_had_happened(tmp_path, 7)


@pytest.mark.parametrize("room", [0, 100, 4096])
def test_a_full_disk_costs_the_update_that_did_not_fit(room, small_disk):
    folder, fill = small_disk
    ledger = filled(folder / "ledger")
    fill(but=room)
    added = 5
    with suppress(OSError):
        while added < 2000:
            add(ledger, added)
            added += 1
    with pytest.raises(OSError, match=r"No space left.*log-000000"):
        add(ledger, added)
    assert_as_if_nothing_had_happened(folder / "ledger", added)
    (folder / "filler").unlink()
    add(ledger, added)
    assert_as_if_nothing_had_happened(folder / "ledger", added + 1)


def test_a_read_only_folder_can_be_read_and_is_named(tmp_path, frozen):
    filled(tmp_path)
    frozen(tmp_path)
    assert_as_if_nothing_had_happened(tmp_path, 5)
    with pytest.raises(ValueError, match=r"folder .*log-000000 cannot be written"):
        add(Ledger(50, tmp_path, resume=True), 5)


DAMAGES = {
    "zeros at the end, as after a loss of power": lambda rows: np.vstack([rows, [[0, 0]]]),
    "rows that run backwards": lambda rows: rows[::-1],
    "a negative number of rows": lambda rows: rows * [[1, -1]],
    "steps that fall": lambda rows: rows * [[-1, 1]],
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_updates_are_named(kind, tmp_path):
    filled(tmp_path)
    path = tmp_path / "log-000000" / "updates"
    rows = np.fromfile(path, np.int64).reshape(-1, 2)
    DAMAGES[kind](rows).astype(np.int64).tofile(path)
    for use in (Ledger.open, lambda place: Ledger(50, place, resume=True)):
        with pytest.raises(ValueError, match=r"log-000000 is damaged; begin a ledger in another"):
            use(tmp_path).scores()


def test_an_index_that_there_is_not_is_named(tmp_path):
    filled(tmp_path)
    path = tmp_path / "log-000000" / "index"
    index = np.fromfile(path, np.uint32)
    index[3] = 999
    index.tofile(path)
    with pytest.raises(ValueError, match=r"log-000000 is damaged: index 999 is out of bounds"):
        Ledger.open(tmp_path).scores()


@pytest.mark.parametrize("name", ["index", "column-loss"])
def test_a_log_that_lost_a_file_is_read_up_to_what_is_whole(name, tmp_path):
    filled(tmp_path)
    path = tmp_path / "log-000000" / name
    os.truncate(path, path.stat().st_size - 1)
    assert_as_if_nothing_had_happened(tmp_path, 4)


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "forged"])
def test_a_damaged_parquet_file_is_named(how, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "ledger.parquet"
    filled(tmp_path / "ledger").save(path)
    content = path.read_bytes()
    if how == "forged":
        lists = pa.array([[0.5], [0.5, 0.25]], pa.list_(pa.float32()))
        table = {"index": [0, 1], "presentations": [1, 10**12], "loss": lists}
        parquet.write_table(pa.table(table), path)
    else:
        new = {"cut": content[: len(content) // 2], "empty": b"", "noise": b"x" * len(content)}
        path.write_bytes(new[how])
    with pytest.raises(ValueError, match=r"ledger\.parquet (cannot be read|is no ledger)"):
        Ledger.load(path)


@pytest.mark.parametrize("name", ["index", "updates", "columns"])
def test_a_forged_state_is_refused(name):
    ledger = Ledger(3)
    ledger.update([0, 2], loss=[0.5, 0.25])
    forged = {
        "index": torch.tensor([0, 9]),
        "updates": torch.tensor([[0, 5]]),
        "columns": {"loss": torch.zeros(1)},
    }
    with pytest.raises((ValueError, LookupError)):
        Ledger(3).load_state_dict(ledger.state_dict() | {name: forged[name]})
