import itertools
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memtools import Ledger, scores

# A mean over a few presentations, rounded to float32 at both ends.
RTOL = 4 * float(np.finfo(np.float32).eps)
COLUMNS = ["loss", "confidence", "el2n", "margin", "correct"]


@st.composite
def trainings(draw):
    """Number of examples and updates: indices, with duplicates, and which columns they bring."""
    n = draw(st.integers(1, 6))
    index = st.lists(st.integers(0, n - 1), max_size=12)
    kinds = st.sets(st.sampled_from(["logits", "loss", "extra"]), min_size=1)
    updates = draw(st.lists(st.tuples(index, kinds), max_size=8))
    return n, updates, draw(st.integers(0, 2**31))


def arguments(index, kinds, generator):
    logits = torch.randn(len(index), 3, generator=generator)
    targets = torch.randint(3, (len(index),), generator=generator)
    given_values = {}
    if "logits" in kinds:
        given_values |= {"logits": logits, "targets": targets}
    if "loss" in kinds:
        given_values["loss"] = torch.rand(len(index), generator=generator)
    if "extra" in kinds:
        given_values["extra"] = torch.rand(len(index), generator=generator).tolist()
    return given_values


def values_of(options):
    values = {k: options[k] for k in ("loss", "extra") if k in options}
    if "logits" in options:
        pair = options["logits"], options["targets"]
        values.setdefault("loss", scores.loss(*pair))
        values["confidence"] = scores.confidence(*pair)
        values["el2n"] = scores.el2n(*pair)
        values["margin"] = scores.margin(*pair)
        values["correct"] = scores.correctness(*pair)
    return {name: [float(v) for v in value] for name, value in values.items()}


@pytest.fixture(params=["memory", "folder", "small ranges", "two processes"])
def make(request, tmp_path, monkeypatch):
    """A function that makes an empty ledger, of each kind in turn."""
    if request.param in ("small ranges", "two processes"):
        # A range then holds an example or two.
        monkeypatch.setattr("memtools.ledger.ranges._MEMORY", 100)
        monkeypatch.setattr("memtools.ledger.ranges._BLOCK", 3)
    made = itertools.count()

    def ledger(n):
        folder = tmp_path / str(next(made))
        match request.param:
            case "memory":
                return Ledger(n)
            case "two processes":
                return TwoProcesses(n, folder)
        return Ledger(n, folder)

    return ledger


class TwoProcesses(Ledger):
    """Updates go to the logs of two processes in turn."""

    steps = 0

    def update(self, *args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", str(int(self.steps % 3 == 1)))
            super().update(*args, step=self.steps, **options)
        self.steps += 1


def run(training, make=Ledger):
    """A ledger, and the same kept as a list of presentations, each a dict, for each example."""
    n, updates, seed = training
    generator = torch.Generator().manual_seed(seed)
    ledger, lists, names = make(n), [[] for _ in range(n)], []
    for index, kinds in updates:
        options = arguments(index, kinds, generator)
        ledger.update(torch.tensor(index, dtype=torch.long), **options)
        values = values_of(options)
        names += [name for name in values if index and name not in names]
        for k, i in enumerate(index):
            lists[i].append({name: value[k] for name, value in values.items()})
    return ledger, lists, names


def assert_equal(a, b):
    assert a.num_examples == b.num_examples
    assert a.columns == b.columns
    np.testing.assert_array_equal(a.presentations, b.presentations)
    for name in a.columns:
        np.testing.assert_array_equal(a.history(name), b.history(name))


def mean(values):
    values = [v for v in values if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def std(values):
    values = [v for v in values if not math.isnan(v)]
    return math.sqrt(mean([(v - mean(values)) ** 2 for v in values])) if values else math.nan


# Each example makes a ledger of its own.
IN_ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@IN_ANY
@given(trainings())
def test_history_agrees_with_lists(make, training):
    ledger, lists, names = run(training, make)
    assert set(ledger.columns) == set(names)
    assert ledger.presentations.tolist() == [len(row) for row in lists]
    longest = max(len(row) for row in lists)
    for name in names:
        expected = np.full((len(lists), longest), np.nan, np.float32)
        for i, row in enumerate(lists):
            for t, presentation in enumerate(row):
                expected[i, t] = presentation.get(name, np.nan)
        np.testing.assert_array_equal(ledger.history(name), expected)


@IN_ANY
@given(trainings())
def test_scores_agree_with_loops(make, training):
    ledger, lists, names = run(training, make)
    table = ledger.scores()
    expected: dict[str, list[float]] = {
        "index": list(range(len(lists))),
        "presentations": [len(row) for row in lists],
    }
    for name in names:
        history = [[p.get(name, math.nan) for p in row] for row in lists]
        means = [mean(row) for row in history]
        if name == "loss":
            known = [[v for v in row if not math.isnan(v)] for row in history]
            expected["csl"] = [sum(row) if row else math.nan for row in known]
        elif name == "margin":
            expected["aum"] = means
        elif name == "correct":
            expected["correctness"] = means
            longest = max(len(row) for row in lists)
            padded = [row + [math.nan] * (longest - len(row)) for row in history]
            padded = torch.tensor(padded).reshape(len(lists), longest)
            expected["forgetting_events"] = scores.forgetting_events(padded).tolist()
            expected["learning_time"] = scores.learning_time(padded).tolist()
        else:
            expected[name] = means
            if name == "confidence":
                expected["variability"] = [std(row) for row in history]
    assert set(table) == set(expected)
    for name, column in expected.items():
        assert table[name].shape == (len(lists),)
        np.testing.assert_allclose(table[name], column, rtol=RTOL, atol=RTOL, err_msg=name)


@given(trainings())
def test_state_dict_round_trip(training):
    ledger, _, _ = run(training)
    other = Ledger(ledger.num_examples)
    other.load_state_dict(ledger.state_dict())
    assert_equal(ledger, other)


def test_parquet_round_trip(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "ledger.parquet"

    @given(trainings())
    def round_trip(training):
        ledger, _, _ = run(training)
        ledger.save(path)
        loaded = Ledger.load(path)
        assert_equal(ledger, loaded)
        loaded.update([0], loss=[0.5])
        assert loaded.presentations[0] == ledger.presentations[0] + 1

    round_trip()
    assert list(tmp_path.iterdir()) == [path]


def sample():
    """Three examples: presented twice, never, once; with a column that comes later."""
    ledger = Ledger(3)
    ledger.update([0], loss=[2.0])
    ledger.update(
        [2, 0],
        logits=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        targets=torch.tensor([0, 0]),
        own=[5.0, 6.0],
    )
    return ledger


def test_pandas_reads_the_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    sample().save(tmp_path / "ledger.parquet")
    frame = pandas.read_parquet(tmp_path / "ledger.parquet")
    assert frame["index"].tolist() == [0, 1, 2]
    assert frame["presentations"].tolist() == [2, 0, 1]
    assert [row.tolist() for row in frame["own"].fillna(0)] == [
        pytest.approx([math.nan, 6.0], nan_ok=True),
        [],
        [5.0],
    ]


def test_pandas_takes_the_scores():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(sample().scores())
    assert frame.shape[0] == 3
    assert frame["own"].tolist() == pytest.approx([6, math.nan, 5], nan_ok=True)


def test_a_column_that_comes_later_begins_with_gaps():
    """An example that was right whenever it was looked at is learned, whatever came before."""
    ledger = Ledger(2)
    ledger.update([0, 1], loss=[1.0, 1.0])
    for right in ([0, 1], [1, 1]):
        ledger.update([0, 1], correct=right)
    assert np.isnan(ledger.history("correct")[:, 0]).all()
    assert ledger.scores()["learning_time"].tolist() == [2, 1]
    assert ledger.scores()["forgetting_events"].tolist() == [0, 0]


def test_forgetting_is_seen_across_a_gap():
    ledger = Ledger(1)
    ledger.update([0], correct=[1])
    ledger.update([0], loss=[1.0])
    ledger.update([0], correct=[0])
    assert ledger.scores()["forgetting_events"].tolist() == [1]


def test_duplicates_in_one_update_are_presentations_in_order():
    ledger = Ledger(2)
    ledger.update([1, 0, 1, 1], loss=[1.0, 2.0, 3.0, 4.0])
    assert ledger.presentations.tolist() == [1, 3]
    np.testing.assert_array_equal(ledger.history("loss")[1], [1, 3, 4])


def test_never_learned_ranks_hardest():
    """Even if it was presented less often than another was forgotten."""
    ledger = Ledger(3)
    for right in [1, 0] * 5:
        ledger.update([0], correct=[right])
    ledger.update([1, 2], correct=[0, 1])
    events = ledger.scores()["forgetting_events"]
    assert events[1] > events[0] > events[2]


@pytest.mark.parametrize("count", [7, 8, 9, 40])
def test_many_presentations(count):
    ledger = Ledger(2)
    for t in range(count):
        ledger.update([1], loss=[float(t)])
    np.testing.assert_array_equal(ledger.history("loss")[1], np.arange(count))
    assert ledger.scores()["csl"][1] == sum(range(count))


@pytest.mark.parametrize("index", [[1, 0], (1, 0), np.array([1, 0]), torch.tensor([1, 0]).int()])
def test_whatever_holds_indices(index):
    ledger = Ledger(2)
    ledger.update(index, loss=torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True))
    np.testing.assert_array_equal(ledger.history("loss"), [[2], [1]])


def test_a_ledger_without_presentations(make):
    ledger = make(2)
    assert ledger.scores()["presentations"].tolist() == [0, 0]
    ledger.update([], loss=[])
    assert ledger.columns == []
    assert ledger.scores().keys() == {"index", "presentations"}


def test_state_dict_is_a_copy():
    ledger = sample()
    state = ledger.state_dict()
    ledger.update([0, 1, 2], loss=[9.0, 9.0, 9.0])
    other = Ledger(3)
    other.load_state_dict(state)
    assert_equal(other, sample())
    other.update([0], loss=[1.0])
    assert state["index"].tolist() == [0, 2, 0]


def test_state_dict_survives_torch_save(tmp_path):
    torch.save(sample().state_dict(), tmp_path / "state.pt")
    other = Ledger(3)
    other.update([1], gone=[1.0])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_equal(other, sample())


LOGITS, TARGETS = torch.zeros(2, 2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("index", "options", "error", "text"),
    [
        ([0, 3], {"loss": [1, 2]}, ValueError, r"indices must lie in 0\.\.2, got values from 0 to"),
        ([0, -1], {"loss": [1, 2]}, ValueError, r"indices must lie in 0\.\.2, got values from -1"),
        ([0.0, 1.0], {"loss": [1, 2]}, ValueError, r"indices must be integers .* got float64"),
        ([True, False], {"loss": [1, 2]}, ValueError, r"indices must be integers .* got bool"),
        ([[0, 1]], {"loss": [[1, 2]]}, ValueError, r"indices must be integers of shape \(n,\)"),
        ([0, 1], {"loss": [1, 2, 3]}, ValueError, r"loss must have one value .* 2 .*\(3,\)"),
        ([0, 1], {"own": 1.0}, ValueError, r"own must have one value for each of the 2 indices"),
        ([0, 1], {"logits": LOGITS}, ValueError, r"targets must be given together with logits"),
        ([0, 1], {"targets": TARGETS}, ValueError, r"logits, loss or a score .* must be given"),
        ([0, 1], {}, ValueError, r"logits, loss or a score of another name must be given"),
        (
            [0, 1],
            {"logits": LOGITS, "targets": TARGETS, "el2n": [1, 2]},
            ValueError,
            r"el2n is a column of the ledger's own",
        ),
        (
            [0, 1],
            {"logits": LOGITS / 0, "targets": TARGETS},
            ValueError,
            r"logits of 2 of 2 examples are NaN or infinite",
        ),
        (
            [0, 1],
            {"logits": LOGITS, "targets": TARGETS - 100},
            ValueError,
            r"targets must lie in 0\.\.1",
        ),
        (
            [0, 1, 2],
            {"logits": LOGITS, "targets": TARGETS},
            ValueError,
            r"loss must have one value for each of the 3 indices",
        ),
        (
            [0, 1],
            {"logits": LOGITS.tolist(), "targets": TARGETS},
            TypeError,
            r"logits must be a tensor, got list",
        ),
        ([0, 1], {"loss": ["a", "b"]}, ValueError, r"could not convert"),
        ([0, 1], {"no name": [1, 2]}, ValueError, r"'no name' is no name for a column; use"),
        (
            [0, 1],
            {"logits": LOGITS, "targets": TARGETS[:1]},
            ValueError,
            r"targets must have one entry for each of the 2 rows of logits, got shape \(1,\)",
        ),
    ]
    + [
        ([0, 1], {name: [1, 2]}, ValueError, rf"{name} is a column of the ledger's own")
        for name in ("index", "presentations", "csl", "aum", "correctness", "variability")
    ],
)
def test_an_error_leaves_the_ledger_as_it_was(index, options, error, text):
    ledger = sample()
    with pytest.raises(error, match=text):
        ledger.update(index, **options)
    assert_equal(ledger, sample())


def test_other_errors_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"num_examples must be at least 1, got 0"):
        Ledger(0)
    with pytest.raises(KeyError, match=r"no column 'x'; there are: loss, "):
        sample().history("x")
    with pytest.raises(ValueError, match=r"state holds 3 examples, this ledger 2"):
        Ledger(2).load_state_dict(sample().state_dict())


def test_scores_are_written_and_read_range_by_range(make, tmp_path):
    pytest.importorskip("pyarrow")
    ledger = run((5, [([4, 0, 2, 2], {"logits"}), ([1], {"extra"}), ([], {"loss"})] * 3, 0), make)[
        0
    ]
    ledger.save(tmp_path / "file.parquet")
    assert_equal(Ledger.load(tmp_path / "file.parquet"), ledger)


def fill(ledger, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        index = torch.randperm(ledger.num_examples, generator=generator)[:5]
        extra: dict[str, Any] = {"late": index / 7} if step >= 6 else {}
        ledger.update(
            index, logits=torch.randn(5, 3, generator=generator), targets=index % 3, **extra
        )
    return ledger


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("checkpoint", [0, 3, 6, 8])
def test_going_on_from_a_checkpoint_doubles_nothing(tmp_path, checkpoint, dtype):
    ledger = fill(Ledger(9, tmp_path / "ledger", dtype=dtype), range(checkpoint))
    state = ledger.state_dict()
    fill(ledger, range(checkpoint, 9))  # of which the checkpoint knows nothing
    torch.save(state, tmp_path / "state.pt")
    resumed = Ledger(9, tmp_path / "ledger", dtype=dtype, resume=True)
    assert_equal(resumed, ledger)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fill(resumed, range(checkpoint, 10))
    assert_equal(resumed, fill(Ledger(9, tmp_path / "undisturbed", dtype=dtype), range(10)))
    assert_equal(Ledger.open(tmp_path / "ledger"), resumed)


def test_fewer_processes_go_on_from_a_checkpoint(tmp_path):
    ledger = TwoProcesses(9, tmp_path / "ledger")
    state = fill(ledger, range(5)).state_dict()
    want = {name: ledger.history(name) for name in ledger.columns}
    fill(ledger, range(5, 9))
    alone = Ledger(9, tmp_path / "ledger", resume=True)
    alone.load_state_dict(state)
    for name, history in want.items():
        np.testing.assert_array_equal(alone.history(name), history)
    assert int(state["step"]) == 4


def test_half_precision_takes_half_the_room(tmp_path):
    values = torch.tensor([1.0, 1e-3, 1e5, 0.1])
    for dtype in ("float32", "float16"):
        ledger = Ledger(4, tmp_path / dtype, dtype=dtype)
        ledger.update(range(4), own=values)
        kept = values.half() if dtype == "float16" else values
        np.testing.assert_array_equal(ledger.history("own")[:, 0], kept.float())
        size = (tmp_path / dtype / "log-000000" / "column-own").stat().st_size
        assert size == 4 * kept.element_size()


def test_an_update_that_fails_leaves_the_folder_as_it_was(tmp_path):
    """Here for want of room: of its five indices two can be written."""
    ledger, same = fill(Ledger(9, tmp_path / "ledger"), range(60)), fill(Ledger(9), range(60))
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    index = tmp_path / "ledger" / "log-000000" / "index"
    resource.setrlimit(resource.RLIMIT_FSIZE, (index.stat().st_size + 8, room[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            fill(ledger, [60])
        with pytest.raises(OSError, match="too large"):
            ledger.update(range(5), other=range(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert_equal(ledger, same)
    assert_equal(Ledger.open(tmp_path / "ledger"), same)
    assert_equal(fill(ledger, [60]), fill(same, [60]))


WRITER = """
import sys, torch, memtools
torch.set_num_threads(1)
ledger = memtools.Ledger(50, sys.argv[1])
print("ready", flush=True)
for step in range(10**6):
    index = (torch.arange(7) + step) % 50
    extra = {"late": index} if step > 40 else {}
    ledger.update(index, loss=index + step, own=-index, **extra)
"""


def test_a_kill_at_any_moment_loses_no_update_and_halves_none(tmp_path):
    for kill in range(4):
        folder = tmp_path / str(kill)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        log = folder / "log-000000" / "index"
        while not log.exists() or log.stat().st_size < 1000 * (kill + 1):
            pass
        check_writer(Ledger.open(folder))  # whoever reads meanwhile sees whole updates
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        ledger = Ledger(50, folder, resume=True)
        steps = check_writer(ledger)
        ledger.update([3], loss=[-1.0])
        assert ledger.presentations.sum() == 7 * steps + 1


def check_writer(ledger):
    """The number of whole updates, which must be all that there is."""
    table = ledger.scores()
    steps, rest = divmod(int(table["presentations"].sum()), 7)
    assert rest == 0
    want = Ledger(50)
    for step in range(steps):
        index = (torch.arange(7) + step) % 50
        extra: dict[str, Any] = {"late": index} if step > 40 else {}
        want.update(index, loss=index + step, own=-index, **extra)
    expected = want.scores()
    assert table.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], values)
    return steps


def test_a_ledger_is_pickled_by_its_place(tmp_path):
    ledger = fill(Ledger(9, tmp_path / "ledger"), range(7))
    again = pickle.loads(pickle.dumps(ledger))
    assert_equal(again, ledger)
    fill(again, [7])
    assert again.presentations.sum() == 40


def test_a_log_that_lost_its_end_ends_with_its_last_whole_update(tmp_path):
    fill(Ledger(9, tmp_path / "ledger"), range(8))
    column = tmp_path / "ledger" / "log-000000" / "column-el2n"
    os.truncate(column, column.stat().st_size - 4 * 5 - 3)  # of the last update, and one before
    assert_equal(Ledger.open(tmp_path / "ledger"), fill(Ledger(9), range(6)))


def test_folders_of_others_are_refused(tmp_path):
    ledger = fill(Ledger(9, tmp_path / "ledger"), range(3))
    with pytest.raises(ValueError, match=r"holds a ledger already; pass resume=True"):
        Ledger(9, tmp_path / "ledger")
    with pytest.raises(ValueError, match=r"a ledger with num_examples 9, got 8; name another"):
        Ledger(8, tmp_path / "ledger", resume=True)
    with pytest.raises(ValueError, match=r"a ledger with dtype float32, got float16"):
        Ledger(9, tmp_path / "ledger", dtype="float16", resume=True)
    with pytest.raises(ValueError, match=r'dtype must be "float32" or "float16", got .float8'):
        Ledger(9, dtype="float8")
    with pytest.raises(ValueError, match=r"holds no ledger"):
        Ledger.open(tmp_path)
    with pytest.raises(ValueError, match=r"made at step 7, but the ledger in .* ends at 2; it has"):
        ledger.load_state_dict({"step": torch.tensor(7)})
    with pytest.raises(
        ValueError, match=r"state is of a ledger in a folder, this is one in memory"
    ):
        Ledger(9).load_state_dict(ledger.state_dict())
    with pytest.raises(ValueError, match=r"was opened to be read; Ledger\(9, '.*', resume=True"):
        Ledger.open(tmp_path / "ledger").update([0], loss=[1.0])
    with pytest.raises(ValueError, match=r"step must be at least 2, got 1"):
        ledger.update([0], loss=[1.0], step=1)
    about = tmp_path / "ledger" / "log-000000" / "about.json"
    good = about.read_text()
    for bad in ("", "[]", "{}", good.replace('"loss"', '"../../loss"'), good.replace("9", '"x"')):
        about.write_text(bad)
        with pytest.raises(ValueError, match="does not describe a ledger of this version"):
            Ledger.open(tmp_path / "ledger")


def test_rank_puts_the_hardest_first():
    ledger = Ledger(4)
    targets = torch.tensor([0, 0, 0])
    ledger.update([0, 1, 3], logits=torch.tensor([[1.0, 0], [0, 1], [2, 0]]), targets=targets)
    for by in ("csl", "el2n", "aum", "confidence"):
        assert ledger.rank(by).tolist() == [1, 0, 3, 2]
    assert ledger.rank("forgetting_events").tolist() == [1, 0, 3, 2]
    with pytest.raises(KeyError, match="no column 'x'; there are: index, presentations, csl"):
        ledger.rank("x")


def test_files_that_are_no_ledger_are_refused(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "file.parquet"
    parquet.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match=r"is no ledger: it has the columns \['x'\]"):
        Ledger.load(path)
    sample().save(path)
    parquet.write_table(parquet.read_table(path).take([2, 0, 1]), path)
    with pytest.raises(ValueError, match=r"does not hold the examples 0\.\.2 in order; sort it"):
        Ledger.load(path)
