"""The command line: ``memtools study NAME``, ``report``, ``score`` and ``doctor``."""

import argparse
import errno
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from memtools import __version__
from memtools.cli.all import add_all, add_report
from memtools.cli.doctor import add_doctor
from memtools.cli.score import add_score
from memtools.cli.study import add_study
from memtools.cli.text import plain

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words of the command line; ``None`` takes those of the process.

    Returns:
        Exit code: 0, 1 where ``doctor`` finds something wrong, 2 for input that cannot be used (one
        line on standard error), 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    out = options.get("out")
    try:
        return command(**options) or 0
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            raise
        print(f"memtools: {plain(_one_line(error))}", file=sys.stderr)
        return BAD_INPUT
    except FloatingPointError as error:
        print(f"memtools: {plain(str(error))} and name another --out than {out}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nmemtools: interrupted; the same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"memtools: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("memtools", description="Is my network learning or memorising?")
    parser.add_argument("--version", action="version", version=f"memtools {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    study = commands.add_parser("study", help="run an experiment of the paper")
    names = study.add_subparsers(required=True, metavar="name")
    add_study(names)
    add_all(names)
    add_report(commands)
    add_score(commands)
    add_doctor(commands)
    return parser


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "; make room, and go on with --resume" if is_full else ""
        return f"{error.filename}: {error.strerror}{remedy}"
    return " ".join(str(error).split())
