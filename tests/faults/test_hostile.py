"""Files of strangers: code in checkpoints, bombs, links, pages that run, lines that command."""

import json
import pickle
import shutil
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch

import memtools
from memtools import cli, report, scoring
from memtools.data import Tensors
from memtools.report.joined import read_runs, write_joined
from memtools.scoring import call_factory
from memtools.sensitivity.storage import Snapshot, storage_at
from memtools.studies.folder import Log, RunFolder, read_parquet
from memtools.training import Member, Trainer, train_ensemble
from memtools.training.checkpoint import load_checkpoint

FINISHED = Path(__file__).parents[2] / "bench" / "results" / "studies" / "mislabels-fashion-mnist"
SCRIPT = '<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}" onload="alert(1)'
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe"


class Bomb:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path at which nothing may be when the test ends."""
    yield tmp_path / "it ran"
    assert not (tmp_path / "it ran").exists()


def assert_it_would_run(mark: Path, run: Any) -> None:
    run()
    mark.unlink()  # which there must be something to do with


def data() -> Tensors:
    return Tensors(torch.zeros(8, 3), torch.zeros(8).long())


@pytest.mark.parametrize("kind", ["saved by torch", "plain pickle", "inside a checkpoint"])
def test_a_checkpoint_runs_nothing(kind, mark, tmp_path):
    path = tmp_path / "checkpoint.pt"
    model = torch.nn.Linear(3, 2)
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
        assert_it_would_run(mark, lambda: pickle.loads(path.read_bytes()))
    else:
        torch.save({"model": Bomb(mark), "settings": {}, "updates": 0, "results": []}, path)
        assert_it_would_run(mark, lambda: torch.load(path, weights_only=False))
    for use in (
        lambda: load_checkpoint(path),
        lambda: Trainer(model, checkpoint=path, device="cpu").fit(data()),
        lambda: train_ensemble([Member(model, data(), 0, 0.1)], device="cpu", checkpoint=path),
    ):
        with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint that can be read"):
            use()


def test_a_snapshot_of_a_tape_runs_nothing(mark, tmp_path):
    storage = storage_at(tmp_path / "tape")
    storage.put(3, Snapshot({"weight": torch.zeros(2)}, {}))
    (path,) = (tmp_path / "tape").iterdir()
    bomb = np.empty(1, object)
    bomb[0] = Bomb(mark)
    np.savez(path, weight=bomb)
    assert_it_would_run(mark, lambda: np.load(path, allow_pickle=True)["weight"])
    with pytest.raises(ValueError, match="cannot be read"):
        storage.get(3, torch.device("cpu"))


def test_the_metadata_of_a_parquet_file_run_nothing(mark, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    payload = pickle.dumps(Bomb(mark))
    assert_it_would_run(mark, lambda: pickle.loads(payload))
    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",  # unpickled by old versions of pyarrow
        "ARROW:extension:metadata": payload,
    }
    fields = [pa.field(name, pa.int64(), metadata=extension) for name in ("index", "presentations")]
    schema = pa.schema(fields, metadata={"pandas": payload, "memtools": payload})
    path = tmp_path / "ledger.parquet"
    parquet.write_table(pa.table({"index": [0], "presentations": [0]}, schema=schema), path)
    memtools.Ledger.load(path)
    read_parquet(path)


def test_a_folder_of_scores_does_not_name_what_is_called(mark, tmp_path, capsys):
    scoring.score(torch.nn.Linear(3, 2), data(), tmp_path / "out", scores=["loss"])
    evil = tmp_path / "out" / "evil.py"
    evil.write_text(f"def model():\n    open({str(mark)!r}, 'w')\n")
    about = json.loads((tmp_path / "out" / "_about.json").read_text())
    about["settings"] |= {"model": f"{evil}:model", "data": f"{evil}:model"}
    (tmp_path / "out" / "_about.json").write_text(json.dumps(about))
    assert_it_would_run(mark, lambda: call_factory("model", f"{evil}:model"))
    assert cli.main(["score", "--out", str(tmp_path / "out"), "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model is missing" in line
    assert "evil.py:model" in line


BOMBS = {"nested": "[" * 10**5, "number": "9" * 10**4, "nothing": "", "other": '"x"'}


@pytest.mark.parametrize("kind", BOMBS)
def test_json_that_is_a_bomb_is_refused_in_words(kind, tmp_path):
    for name in ("config.json", "summary.json", "_about.json", "log-000000/about.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(BOMBS[kind])
    for use in (
        lambda: RunFolder.recorded_settings(tmp_path, "csr"),
        lambda: read_runs([tmp_path]),
        lambda: scoring.read(tmp_path),
        lambda: memtools.Ledger.open(tmp_path),
    ):
        with pytest.raises(ValueError, match=str(tmp_path)):
            use()
    config = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    assert cli.main(["study", "csr", *config]) == 2
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"epoch": 1}\n' + BOMBS[kind] + "\n")
    assert Log(lines).rows() == [{"epoch": 1}]


@pytest.fixture
def outside(tmp_path):
    """A file of the user's own, which nobody may change."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def run_folder(path: Path) -> dict[str, Any]:
    """A run folder as a stranger may send it: just begun."""
    from memtools.studies.memorization import Config

    config = Config.suited(train_size=20, validation_size=10, epochs=1, width=2, seeds=(0,))
    RunFolder.open(path, "memorization", config.as_json(), "cpu")
    return config.as_json()


@pytest.mark.parametrize("name", ["metrics/real-seed0.jsonl", "examples", ".config.json.tmp"])
def test_a_run_folder_does_not_lead_out_of_itself(name, outside, tmp_path, capsys):
    run_folder(tmp_path / "run")
    copy = Path(shutil.copy(outside, tmp_path / "copy"))
    for target in (copy, outside):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        if target is copy:
            Log(tmp_path / "link").cut()
            assert not copy.read_text()  # as it would happen
    (tmp_path / "run" / name).symlink_to(outside)
    words = ["study", "memorization", "--out", str(tmp_path / "run"), "--resume"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is a link that leads out of its folder" in line


def test_a_file_of_settings_has_nothing_fetched(tmp_path, capsys):
    from memtools.studies.memorization import Config

    fetched = tmp_path / "anywhere"
    config = Config.suited(dataset="mnist", data_dir=str(fetched), download=True).as_json()
    (tmp_path / "config.json").write_text(json.dumps({"study": "memorization", "settings": config}))
    words = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    assert cli.main(["study", "memorization", *words]) == 2
    assert "anywhere" in capsys.readouterr().err
    assert not fetched.exists()


@pytest.mark.parametrize("value", [None, "x", -1.5, [], {}, [["x"]], True])
def test_settings_of_another_kind_are_refused_by_name(value, tmp_path, capsys):
    settings = run_folder(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for name in ("epochs", "seeds", "radius", "validation_size"):
        if (name == "validation_size" and value is None) or (name == "radius" and value == -1.5):
            continue
        path.write_text(json.dumps(config | {"settings": settings | {name: value}}))
        words = ["study", "memorization", "--out", str(path.parent), "--resume"]
        assert cli.main(words) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line


@pytest.mark.parametrize("name", ["part-000000.parquet", ".lock"])
def test_a_folder_of_scores_does_not_lead_out_of_itself(name, outside, tmp_path):
    if name == ".lock":
        (tmp_path / "out").mkdir()
    else:
        scoring.score(torch.nn.Linear(3, 2), data(), tmp_path / "out", scores=["loss"])
    (tmp_path / "out" / name).unlink(missing_ok=True)
    (tmp_path / "out" / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link that leads out of its folder"):
        scoring.score(torch.nn.Linear(3, 2), data(), tmp_path / "out", scores=["loss"])


@pytest.mark.parametrize("name", ["index", "updates", "column-loss", "about.json"])
def test_a_ledger_does_not_lead_out_of_its_folder(name, outside, tmp_path):
    memtools.Ledger(3, tmp_path / "ledger").update([1, 2], loss=[0.5, 0.25])
    path = tmp_path / "ledger" / "log-000000" / name
    path.unlink()
    path.symlink_to(outside)
    for use in (
        lambda: memtools.Ledger.open(tmp_path / "ledger"),
        lambda: memtools.Ledger(3, tmp_path / "ledger", resume=True),
    ):
        with pytest.raises(ValueError, match=f"{name} is a link that leads out of its folder"):
            use()


@pytest.fixture
def stranger(tmp_path):
    """A finished run with files changed by functions of what is in them."""

    def changed(**changes: Any) -> Path:
        folder = tmp_path / "stranger"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(FINISHED, folder)
        for png in (folder / "figures").iterdir():
            svg = '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)'
            svg += '</script><foreignObject><iframe src="http://a.b"/></foreignObject></svg>'
            png.with_suffix(".svg").write_text(svg)
        for name, change in changes.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return folder

    return changed


class Page(HTMLParser):
    """What there is in a page that could run or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "svg", "iframe", "object", "embed", "link", "base", "form"):
            self.found.append(tag)
        for name, value in attrs:
            is_own = (value or "").startswith(("data:image/", "#"))
            if name.startswith("on") or (name in ("src", "href", "srcset") and not is_own):
                self.found.append(f"{name}={value}")


def spoken(value: Any) -> Any:
    """The same with all words those of an attacker."""
    if isinstance(value, dict):
        return {SCRIPT + key: spoken(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spoken(one) for one in value]
    return f"{SCRIPT}: {SCRIPT}" if isinstance(value, str) else value


def hostile_config(config: dict[str, Any]) -> dict[str, Any]:
    settings = config["settings"] | {"dataset": SCRIPT, SCRIPT: SCRIPT}
    return spoken(config) | {
        "study": config["study"], "settings": settings, "versions": {SCRIPT: SCRIPT},
        "device": SCRIPT,
    }  # fmt: skip


def hostile_summary(summary: dict[str, Any]) -> dict[str, Any]:
    figures = [[name, SCRIPT, SCRIPT] for name, *_ in summary["figures"]]
    sentences = spoken(summary["sentences"])
    return summary | {"question": SCRIPT, "sentences": sentences, "figures": figures}


def hostile_verdicts(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [v | {"statement": SCRIPT, "about": SCRIPT} for v in verdicts]


def test_a_page_runs_nothing_and_fetches_nothing(stranger, tmp_path):
    runs = read_runs(
        [stranger(config=hostile_config, summary=hostile_summary, verdicts=hostile_verdicts)]
    )
    text = write_joined(runs, tmp_path / "page.html").read_text()
    assert Page(text).found == []
    assert "default-src 'none'" in text
    assert "&lt;script&gt;alert(1)" in text
    # As it would be if nothing were escaped.
    loader = jinja2.FileSystemLoader(Path(report.__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=False).get_template("joined.html.j2")
    found = Page(template.render(dataset=None, runs=runs, claims=[])).found
    assert {"script", "onerror=alert(1)", "onload=alert(1)"} <= set(found)


def test_a_run_with_other_things_in_its_files_is_refused_or_shown(stranger, tmp_path):
    def leaves(value: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        keys = {dict: list, list: lambda value: range(len(value))}.get(
            type(value), lambda value: ()
        )
        for key in keys(value):
            yield from leaves(value[key], (*path, key))

    def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
        if not path:
            return new
        first, *rest = path
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[first] = put(value[first], tuple(rest), new)
        return changed

    folder, tried, shown = stranger(), 0, 0
    for name in ("config", "summary", "verdicts"):
        path = folder / f"{name}.json"
        content = json.loads(path.read_text())
        content = content[:1] if name == "verdicts" else content
        for place in leaves(content):
            for new in (None, "x", [[1]]):
                path.write_text(json.dumps(put(content, place, new)))
                tried += 1
                with suppress(ValueError, OSError):  # else it were a traceback
                    write_joined(read_runs([folder]), tmp_path / "page.html")
                    shown += 1
        path.write_text(json.dumps(content))
    assert 50 < shown < tried - 50


def test_names_do_not_command_the_terminal(stranger, tmp_path, capsys):
    folder = stranger(
        config=lambda c: c | {"settings": c["settings"] | {"dataset": ESCAPES}},
        verdicts=lambda verdicts: [v | {"claim": "C1"} for v in verdicts],
    )
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert r"\x1b]0;title\x07" in printed
    stranger(config=lambda c: c | {"study": ESCAPES})
    assert cli.main(["study", "csr", "--out", str(folder), "--resume"]) == 2
    printed += capsys.readouterr().err
    assert r"a run of the study \x1b]0;title" in printed
    assert not {c for c in printed if c in ESCAPES and not c.isprintable()}


def test_a_class_name_of_a_folder_is_shown_as_text(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    for number in range(40):
        folder = tmp_path / "images" / ("a<svg onload=alert(1)>", "$\\frac{" + ESCAPES)[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), number * 5).save(folder / f"{number}.png")
    words = "--dataset folder --image-size 4 --epochs 1 --seeds 0 --width 2 --csr-examples 4"
    words = [*words.split(), "--data-dir", str(tmp_path / "images"), "--out", str(tmp_path / "run")]
    assert cli.main(["study", "memorization", *words]) == 0, capsys.readouterr().err
    assert Page((tmp_path / "run" / "report.html").read_text()).found == []
    assert "\x1b" not in capsys.readouterr().out
