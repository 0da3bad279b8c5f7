"""``memtools study all`` and ``memtools report``: every experiment, and one page of them."""

import argparse
import sys
from pathlib import Path
from typing import Any

from memtools.cli.study import add_sharing, blamed_on, run_study
from memtools.cli.text import plain

__all__ = ["add_all", "add_report"]

SMALL, LARGE = "digits", "fashion-mnist"

ON_BOTH = ("pruning",)
"""Studies that answer an open question, for which one data set is too few."""


def add_all(names: Any) -> None:
    """Add ``all`` to ``memtools study``."""
    summary = "every study, one after the other, and one report of all"
    parser = names.add_parser(
        "all",
        help=summary,
        description=f"{summary}. On {LARGE} if no data set is named ({SMALL} with --quick); "
        f"{', '.join(ON_BOTH)} on {SMALL} as well.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs", "all"), help="folder of the run folders")
    add_sharing(parser)
    add("--only", nargs="+", metavar="NAME", default=None, help="these studies; all")
    add("--dataset", help="digits, fashion-mnist, mnist, cifar10, or folder")
    add("--data-dir", help="where the files of the data set are (./data)")
    add("--download", action="store_true", help="download the data set if it is not there")
    add("--device", help="cpu, cuda, cuda:1, mps, or auto")
    parser.set_defaults(command=_run_all)


def add_report(commands: Any) -> None:
    """Add ``report`` to the commands."""
    summary = "join the reports of studies into one page"
    parser = commands.add_parser("report", help=summary, description=summary)
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="run folders, or a folder of them"
    )
    parser.add_argument("--out", type=Path, help="the page; report.html in the (first) DIR")
    parser.set_defaults(command=_run_report)


def _run_all(
    out: Path, resume: bool, processes: int, size: str, only: list[str] | None, **given: Any
) -> None:
    from memtools.report import write_report
    from memtools.studies import STUDIES

    if unknown := set(only or ()) - STUDIES.keys():
        raise ValueError(f"only must name some of {', '.join(STUDIES)}, got {', '.join(unknown)}")
    names = [name for name in STUDIES if only is None or name in only]
    runs = [(name, given.get("dataset", SMALL if size == "quick" else LARGE)) for name in names]
    if "dataset" not in given and size != "quick":
        runs += [(name, SMALL) for name in names if name in ON_BOTH]
    if out.exists() and any(out.iterdir()) and not resume:
        raise ValueError(
            f"out {out} is not empty; add --resume to go on with the runs in it, or name another"
        )
    for number, (name, dataset) in enumerate(runs, 1):
        print(f"memtools: {number} of {len(runs)}: {name}, {dataset}", file=sys.stderr, flush=True)
        own = {k: v for k, v in given.items() if not (dataset == SMALL and k == "data_dir")}
        folder = out / f"{name}-{dataset}"
        settings = own | {"dataset": dataset}
        with blamed_on(folder):
            done = run_study(name, folder, settings, size=size, resume=resume, processes=processes)
            write_report(*done)
    _run_report([out], None)


def _run_report(folders: list[Path], out: Path | None) -> None:
    from rich.console import Console

    from memtools.report.joined import claims_in_words, read_runs, write_joined

    runs = read_runs(folders)
    page = write_joined(runs, folders[0] / "report.html" if out is None else out)
    console = Console(highlight=False, markup=False)  # names are anybody's
    for line in claims_in_words(runs):
        console.print(plain(f"• {line}"))
    console.print(f"\nReport: {page.resolve().as_uri()}", soft_wrap=True)
