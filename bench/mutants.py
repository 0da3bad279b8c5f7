"""Do the tests notice when the core is wrong? One small change of the code at a time, by mutmut.

``python -m bench.mutants [MODULE ...] [--results FILE]``: change the modules of ``mutants.toml`` in
a copy of the last commit, run the tests that are about each, and keep in ``bench/results`` what
became of the changes. Functions with a decorator are left alone, so Triton kernels are. A change
that no test notices has to be explained in ``mutants.toml``; otherwise the command fails.
"""

import argparse
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from memtools.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "mutants.json"
MODULES: dict[str, dict[str, Any]] = tomllib.loads(
    (ROOT / "bench" / "mutants.toml").read_text(encoding="utf-8")
)
SETTINGS = """
[tool.mutmut]
source_paths = ["memtools", "memtools_kernels"]
only_mutate = [{file}]
also_copy = ["bench"]
# Lines of a message, whose words that matter are tested; a device that no test machine has.
do_not_mutate_patterns = ['^\\s*f?"', '"mps"']
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=any-failure"]
pytest_add_cli_args_test_selection = {tests}
"""
NOTICED = {"killed", "timeout", "segfault"}


def main(arguments: list[str] | None = None) -> int:
    """Mutate, print what is left, keep the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="those of mutants.toml")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args(arguments)
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    for module in given.modules or MODULES:
        kept[module] = found = mutated(module)
        write_text(given.results, json.dumps(dict(sorted(kept.items())), indent=2) + "\n")
        print(f"{module}: {found['noticed']} of {found['mutants']} noticed", flush=True)
        for text in sorted(set(found["left"]) - explained(module)):
            print("  unexplained:", text, flush=True)
    return int(any(set(found["left"]) - explained(module) for module, found in kept.items()))


def explained(module: str) -> set[str]:
    """The changes that ``mutants.toml`` has a reason for."""
    return {text for changes in MODULES[module].get("equivalent", {}).values() for text in changes}


def mutated(module: str) -> dict[str, Any]:
    """What became of the mutants of a module."""
    with tempfile.TemporaryDirectory() as folder:
        commit = unpack_commit(Path(folder))
        file = module.replace(".", "/") + ".py"
        with Path(folder, "pyproject.toml").open("a", encoding="utf-8") as project:
            tests = json.dumps(MODULES[module]["tests"])
            project.write(SETTINGS.format(file=json.dumps(file), tests=tests))
        run(folder, "run", "--max-children", "1")
        lines = run(folder, "results", "--all", "true").splitlines()
        statuses = dict(line.strip().split(": ") for line in lines if ": " in line)
        names = [name for name, status in statuses.items() if status not in NOTICED]
        left = [change(run(folder, "show", name)) for name in names]
    return {
        "mutants": len(statuses),
        "noticed": len(statuses) - len(left),
        "left": left,
        "commit": commit,
        "mutmut": importlib.metadata.version("mutmut"),
    }


def unpack_commit(folder: Path) -> str:
    """Files of the last commit, both packages at the top, where mutmut wants them; which it is."""
    commit = git("rev-parse", "HEAD").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as files:
        files.extractall(folder, filter="data")
    (folder / "kernels" / "memtools_kernels").rename(folder / "memtools_kernels")
    return commit


def git(*words: str) -> bytes:
    """What a command of git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


def run(folder: str, *words: str) -> str:
    """What a command of mutmut prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"mutmut {' '.join(words)} failed\n{done.stdout[-3000:]}{done.stderr}")
    return done.stdout


def change(difference: str) -> str:
    """A mutant in a line, of the difference that mutmut shows."""
    lines = [line for line in difference.splitlines() if line[:3] not in ("---", "+++")]
    old = [line[1:].strip() for line in lines if line.startswith("-")]
    new = [line[1:].strip() for line in lines if line.startswith("+")]
    return f"{' '.join(old)}  ->  {' '.join(new)}"


if __name__ == "__main__":
    sys.exit(main())
