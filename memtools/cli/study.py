"""``memtools study NAME``: one experiment, from its options to its report."""

import argparse
import os
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from memtools.cli.text import plain
from memtools.extras import require
from memtools.files import read_json

__all__ = ["SIZES", "add_sharing", "add_study", "blamed_on", "progress", "run_study"]

SIZES = {
    "quick": "a small run: minutes for all studies",
    "full": "the paper's sizes, for a GPU",
}
NOT_OF_A_FILE = {"download": False}
"""Settings that a file does not decide: nothing is fetched, and put into a folder, unasked."""
PATIENCE = 600
"""Seconds for which a process of torchrun waits for the first one to begin the run."""


def add_study(names: Any) -> None:
    """Add a command for each study to ``memtools study``."""
    from memtools.studies import STUDIES

    for name, module in STUDIES.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        one = names.add_parser(name, help=summary, description=summary)
        one.add_argument("--out", type=Path, default=Path("runs", name), help="the run folder")
        add_sharing(one)
        one.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="settings of a run, its config.json; what is given beside counts more",
        )
        for setting in fields(module.Config):
            kind = get_type_hints(module.Config)[setting.name]
            _add_option(one, setting, kind, module.Config.others)
        one.set_defaults(command=partial(_run_and_show, name))


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """Options of one study and of all of them: its size, going on, and processes."""
    add = parser.add_argument
    add("--resume", action="store_true", default=False, help="go on with what is in --out")
    add("--processes", type=int, default=1, help="processes that share the trainings; 1")
    sizes = parser.add_mutually_exclusive_group()
    for size, meaning in SIZES.items():
        sizes.add_argument(f"--{size}", action="store_const", dest="size", const=size, help=meaning)
    parser.set_defaults(size="default")


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _add_option(
    parser: argparse.ArgumentParser, setting: Field[Any], kind: Any, others: dict[str, Any]
) -> None:
    # Only what is given counts: defaults depend on the data set, and on a resumed run.
    options: dict[str, Any] = {"default": argparse.SUPPRESS}
    options["help"] = str(setting.metadata["help"]).replace("%", "%%")
    if setting.default is not None and setting.default is not False:
        options["help"] += f"; {_words(setting.default)}"
    if setting.name in others:
        options["help"] += f", for other data sets {_words(others[setting.name])}"
    if get_origin(kind) is types.UnionType:
        kind = next(k for k in get_args(kind) if k is not type(None))
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is tuple:
        options |= {"nargs": "+", "type": get_args(kind)[0]}
    else:
        options["type"] = kind
    parser.add_argument("--" + setting.name.replace("_", "-"), **options)


def _run_and_show(
    name: str,
    out: Path,
    resume: bool,
    processes: int,
    size: str,
    config: Path | None,
    **given: Any,
) -> None:
    if config is not None:
        given = _read(config, name) | given
    with _apart(out) as is_first, blamed_on(out):
        done = run_study(
            name, out, given, size=size, resume=resume or not is_first, processes=processes
        )
        if is_first:
            _show(*done)


def run_study(
    name: str, out: Path, given: dict[str, Any], *, size: str, resume: bool, processes: int
) -> tuple[Any, Any, Any, Any]:
    """Run a study, or go on with it.

    Args:
        name: Its name.
        out: The run folder.
        given: Settings that are not the default.
        size: As in ``Settings.suited``.
        resume: Whether there may be a run in the folder.
        processes: Processes that share the trainings.

    Returns:
        Folder, configuration, data and summary.

    Raises:
        ValueError: If a setting cannot be used, or the folder holds something else.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    from memtools.studies import STUDIES, sweep
    from memtools.studies.folder import RunFolder

    require("rich")
    study = STUDIES[name]
    recorded = RunFolder.recorded_settings(out, name)
    if recorded is not None and not resume:
        raise ValueError(
            f"out {out} holds a run already; add --resume to go on with it, or name another --out"
        )
    if recorded is None:
        config = study.Config.suited(size, **given)
    else:
        _check_settings(f"out {out}", recorded, study.Config, "name another --out")
        config = study.Config(**recorded | NOT_OF_A_FILE | given)
    data = study.prepare(config)
    with progress(len(study.cells(config)) * getattr(config, "epochs", 1)) as tell:
        folder = sweep(config, out, processes=processes, data=data, progress=tell)
    return folder, config, data, study.summarise(folder, config, data)


def _read(path: Path, name: str) -> dict[str, Any]:
    """Settings of a study out of the ``config.json`` of a run."""
    from memtools.studies import STUDIES

    try:
        config = read_json(path)
        study, settings = config["study"], dict(config["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"config {path} is no config.json of a run ({error})") from error
    if study != name:
        raise ValueError(f"config {path} is of the study {study}, not of {name}")
    _check_settings(f"config {path}", settings, STUDIES[name].Config, "use the one it was made by")
    return settings | NOT_OF_A_FILE


def _check_settings(where: str, settings: dict[str, Any], config: Any, remedy: str) -> None:
    """Refuse settings out of a file, whoever has written it, that are not those of the study."""
    kinds = get_type_hints(config)
    known = {setting.name for setting in fields(config)}
    if unknown := settings.keys() ^ known:
        raise ValueError(
            f"{where} was made by another version of memtools, with other settings "
            f"({', '.join(sorted(unknown))}); {remedy}"
        )
    for name, value in settings.items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{where} holds {name} {value!r}, which is of another kind; {remedy}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, as JSON gives it, is of the kind of a setting."""
    if get_origin(kind) is types.UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(one, get_args(kind)[0]) for one in value)
    return type(value) is kind or (kind is float and type(value) is int)


@contextmanager
def blamed_on(out: Path) -> Iterator[None]:
    """Say so where files that were there before hold other things than a run writes."""
    is_resumed = out.exists()
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        if not is_resumed:
            raise
        raise ValueError(
            f"out {out} holds results that cannot be used ({type(error).__name__}: {error}); "
            "name another --out"
        ) from error


@contextmanager
def _apart(out: Path) -> Iterator[bool]:
    """Whether this is the first process; under torchrun, each does trainings of its own.

    A trainer that finds the variables of torchrun would do every training in all processes.
    """
    hidden = {
        name: os.environ.pop(name)
        for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
        if name in os.environ
    }
    is_first = hidden.get("RANK", "0") == "0"
    try:
        begin = time.monotonic()
        while not is_first and not (out / "config.json").exists():
            if time.monotonic() - begin > PATIENCE:
                raise ValueError(f"out {out} was not begun by the first process")
            time.sleep(0.1)
        yield is_first
    finally:
        os.environ.update(hidden)


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, with the time that is left; a line for each training elsewhere."""
    from rich import progress

    if not sys.stderr.isatty():
        seen = set()

        def say(line: str, epochs: int) -> None:
            if line not in seen:
                seen.add(line)
                print(f"memtools: {line}", file=sys.stderr, flush=True)

        yield say
        return
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description:32}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda line, epochs: bar.update(task, description=line, advance=epochs)


def _show(folder: Any, config: Any, data: Any, summary: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from memtools.report import write_report

    page = write_report(folder, config, data, summary)
    console = Console(highlight=False, markup=False)  # names are anybody's
    for content in summary.tables:
        table = Table(title=plain(content.title), box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for number, column in enumerate(content.columns):
            justify = "right" if number else "left"
            whole = (number == 0) != content.is_wordy
            table.add_column(plain(column), justify=justify, no_wrap=whole, overflow="fold")
        for row in content.rows:
            table.add_row(*map(plain, row))
        console.print(table)
    for sentence in summary.sentences:
        console.print(plain(f"• {sentence}"))
    console.print(f"\nReport: {page.resolve().as_uri()}", soft_wrap=True)
