"""``memtools doctor``."""

import argparse
from typing import Any

__all__ = ["add_doctor"]

FAILED = 1


def add_doctor(commands: Any) -> None:
    """Add ``doctor`` to the commands."""
    summary = "say what is installed here, and check the numbers on small problems"
    doctor = commands.add_parser(
        "doctor",
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}; takes seconds. Exit code 1 if a number is "
        "wrong.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; auto")
    doctor.set_defaults(command=_run_doctor)


def _run_doctor(device: str) -> int:
    from memtools.doctor import diagnose

    part, failed = "", 0
    for finding in diagnose(device):
        if finding.part != part:
            part = finding.part
            print(f"\n{part}")
        mark = {"ok": " ", "missing": "-", "failed": "!"}[finding.state]
        print(f"{mark} {finding.name:<26} {finding.words}", flush=True)
        failed += finding.state == "failed"
    print(f"\n{failed} check{'s'[: failed > 1]} failed" if failed else "\nall checks passed")
    return FAILED if failed else 0
