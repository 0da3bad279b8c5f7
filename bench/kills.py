"""Is anything lost, doubled or different after SIGKILL, at whatever moment it comes?

``python -m bench.kills [--kills 50] [--results FOLDER]``: for each job of ``killed_jobs.py``, kill
its processes at so many random moments, start each of them again, and compare what is there in the
end, byte for byte, with an undisturbed run. The results go into ``bench/results``; of fewer kills
only into a folder that is named.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.kept import RESULTS, circumstances
from bench.killed import Killer, undisturbed
from bench.killed_jobs import JOBS, Job

KILLS = 50
NOT_RESULTS = {".lock"}


def contents(folder: Path) -> dict[str, str]:
    """The hash of each file by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_RESULTS
    }


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that are lost, more, or different, in words."""
    lost = [f"{name} is lost" for name in expected.keys() - found.keys()]
    more = [f"{name} is more" for name in found.keys() - expected.keys()]
    both = found.keys() & expected.keys()
    return lost + more + [f"{n} is different" for n in both if found[n] != expected[n]]


def killed(job: Job, kills: int, scratch: Path) -> dict[str, Any]:
    """Kill a job so many times, in as many runs as that takes, and compare each of them."""
    alone = undisturbed(job.work, scratch / "undisturbed")
    expected = contents(scratch / "undisturbed")
    killer = Killer(job.work, job.processes, alone, kills)
    runs, found = 0, []
    while not killer.is_done:
        folder = scratch / f"run-{runs}"
        killer.run(folder)
        runs += 1
        found += [f"run {runs}: {line}" for line in differences(contents(folder), expected)]
        shutil.rmtree(folder)
    return {
        "what": job.what,
        "processes": job.processes,
        "kills": dict(killer.kills),
        "fell": dict(killer.fell),
        "runs": runs,
        "files": len(expected),
        "seconds": alone.seconds,
        "operations": alone.operations,
        "differences": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kills")
    parser.add_argument("--kills", type=int, default=KILLS, help="of each job")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="these jobs")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    is_whole = arguments.kills >= KILLS and len(arguments.only) == len(JOBS)
    folder = arguments.results or (RESULTS if is_whole else None)

    torch.set_num_threads(1)
    found = circumstances() | {"jobs": {}}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as scratch:
            found["jobs"][name] = killed(JOBS[name], arguments.kills, Path(scratch))
        print(name, json.dumps(found["jobs"][name]), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kills.json").write_text(json.dumps(found, indent=2) + "\n")
    if any(job["differences"] for job in found["jobs"].values()):
        raise SystemExit("something was lost, doubled or different")


if __name__ == "__main__":
    main()
