"""The command line: ``memtools study NAME`` and ``memtools score``."""

import argparse
import io
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from memtools import __version__
from memtools.extras import require

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words of the command line; ``None`` takes those of the process.

    Returns:
        Exit code: 0, 2 for input that cannot be used (one line on standard error), 130 when
        interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    out = options["out"]
    try:
        command(**options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            raise
        print(f"memtools: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except FloatingPointError as error:
        print(f"memtools: {error} and name another --out than {out}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nmemtools: interrupted; the same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"memtools: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    from memtools.studies import STUDIES

    parser = _Parser("memtools", description="Is my network learning or memorising?")
    parser.add_argument("--version", action="version", version=f"memtools {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    study = commands.add_parser("study", help="run an experiment of the paper")
    names = study.add_subparsers(required=True, metavar="name")
    for name, module in STUDIES.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        one = names.add_parser(name, help=summary, description=summary)
        one.add_argument("--out", type=Path, default=Path("runs", name), help="the run folder")
        one.add_argument("--resume", action="store_true", help="go on with the run in --out")
        for setting in fields(module.Config):
            kind = get_type_hints(module.Config)[setting.name]
            _add_option(one, setting, kind, module.Config.others)
        one.set_defaults(command=partial(_run_study, name))
    _add_score(commands)
    return parser


def _add_score(commands: Any) -> None:
    from memtools.scoring import SCORES

    summary = "score every example of a data set with one model"
    score = commands.add_parser(
        "score",
        help=summary,
        description="Score every example of a data set with one model. A FACTORY is "
        "package.module:function or path/to/file.py:function, called without arguments. To use "
        "several processes: torchrun --nproc-per-node N -m memtools.cli score ...",
        # Only what is given counts: a resumed run keeps its settings.
        argument_default=argparse.SUPPRESS,
    )
    add = score.add_argument
    add("--model", metavar="FACTORY", help="returns the model, a torch.nn.Module")
    add("--data", metavar="FACTORY", help="returns the map-style data set of (input, target)")
    add("--out", type=Path, required=True, help="the folder for the Parquet files")
    add("--resume", action="store_true", default=False, help="go on with the scores in --out")
    add(
        "--scores", nargs="+", choices=SCORES, metavar="SCORE",
        help=f"of {', '.join(SCORES)}; all but the last",
    )  # fmt: skip
    add("--radius", type=float, help="search critical samples, in the units of the inputs")
    add("--method", choices=("lass", "auto"), help="of the search; lass")
    add("--bounds", nargs=2, type=float, metavar=("LOW", "HIGH"), help="allowed inputs; none")
    add("--embedding", help="for token ids, the module that looks them up")
    add("--batch-size", type=int, help="examples a pass; 256")
    add("--chunk-size", type=int, help="examples a file, which a kill may cost; 8192")
    add("--threads", type=int, help="threads of a process on the CPU; 1")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; auto")
    add("--workers", type=int, default=0, help="processes that read data, for each process; 0")
    score.set_defaults(command=_run_score)


def _run_score(out: Path, resume: bool, device: str, workers: int, **given: Any) -> None:
    from torch import nn

    from memtools.scoring import call_factory, recorded_settings, score
    from memtools.training.devices import resolve_device

    require("pyarrow")
    options = ((recorded_settings(out) if resume else None) or {}) | given
    factories = {}
    for name in ("model", "data"):
        factories[name] = options.pop(name, None)
        if factories[name] is None:
            raise ValueError(
                f"--{name} is missing; give package.module:function or path/to/file.py:function"
            )
    place = resolve_device(device)
    model = call_factory("model", factories["model"])
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model {factories['model']} returned {type(model).__name__}, expected a "
            "torch.nn.Module; return the model itself"
        )
    dataset = call_factory("data", factories["data"])
    try:
        done = score(
            model.to(place), dataset, out, workers=workers, resume=resume, about=factories,
            progress=True, **options,
        )  # fmt: skip
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if done.chunks == 0:
        print(f"memtools: nothing left to do in {out} for this process", file=sys.stderr)


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


def _run_study(name: str, out: Path, resume: bool, **given: Any) -> None:
    from memtools.studies import STUDIES
    from memtools.studies.folder import RunFolder

    require("rich")
    study = STUDIES[name]
    recorded = RunFolder.recorded_settings(out, name)
    if recorded is not None and not resume:
        raise ValueError(
            f"out {out} holds a run already; add --resume to go on with it, or name another --out"
        )
    if recorded is None:
        config = study.Config.suited(**given)
    else:
        known = {setting.name for setting in fields(study.Config)}
        if unknown := recorded.keys() ^ known:
            raise ValueError(
                f"out {out} was made by another version of memtools, with other settings "
                f"({', '.join(sorted(unknown))}); name another --out"
            )
        config = study.Config(**recorded | given)
    data = study.prepare(config)
    total = len(study.cells(config)) * config.epochs
    with _progress(total) as tell:
        folder = study.run(config, out, data=data, progress=tell)
    _show(folder, config, data, study.summarise(folder, config, data))


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, a line for each training elsewhere."""
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
    console = Console()
    for content in summary.tables:
        table = Table(title=content.title, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for number, column in enumerate(content.columns):
            justify = "right" if number else "left"
            whole = (number == 0) != content.is_wordy
            table.add_column(column, justify=justify, no_wrap=whole, overflow="fold")
        for row in content.rows:
            table.add_row(*row)
        console.print(table)
    for sentence in summary.sentences:
        console.print(f"• {sentence}", highlight=False)
    console.print(f"\nReport: {page.resolve().as_uri()}", highlight=False, soft_wrap=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
