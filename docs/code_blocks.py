"""The code of a page, run from top to bottom: for its pictures, and in the tests.

``python docs/code_blocks.py PAGE FOLDER`` runs it in a folder, where it may write what it likes.

- A ``python`` block that begins with ``# name.py`` is written to that file; all others run in one
  namespace.
- An ``sh`` block is run line by line. Studies are parsed alone, since their own tests run them;
  benchmarks and installations are left alone.
- A ``text`` block right below is what the block prints, or the error that it ends in; ``...`` in it
  stands for anything.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FENCE = re.compile(
    r"^```(?P<language>python|sh)\n(?P<code>.*?)^```\n(?:\n*^```text\n(?P<said>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
INCLUDE = re.compile(r"^```\{include\} (?P<file>\S+)\n(?P<options>(?::.*\n)*)```$", re.MULTILINE)
OPTION = re.compile(r"^:([\w-]+): (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
LEFT_ALONE = ("python3 -m venv", "pip install", "python -m bench.")


@dataclass(frozen=True)
class Block:
    """Code of a page.

    Attributes:
        language: ``"python"`` or ``"sh"``.
        code: The code.
        said: What the page says that it prints, or raises; ``None`` says nothing.
        place: File and line, for errors.
    """

    language: str
    code: str
    said: str | None
    place: str

    @property
    def file(self) -> str | None:
        """Name of the file that this is."""
        first = re.match(r"# (\S+\.py)\n", self.code)
        return first[1] if first and self.language == "python" else None


def pages() -> list[Path]:
    """All pages of the site."""
    found = Path(__file__).parent.rglob("*.md")
    return sorted(page for page in found if "_made" not in page.parts)


def text_of(page: Path, source: str | None = None) -> str:
    """A page with the parts of other files that it includes, whose links then start at the page."""

    def included(match: re.Match[str]) -> str:
        file = page.parent / match["file"]
        text, options = file.read_text(), dict(OPTION.findall(match["options"]))
        if "start-after" in options:
            text = text.split(options["start-after"], 1)[1]
        if "end-before" in options:
            text = text.split(options["end-before"], 1)[0]
        if "heading-offset" in options:
            text = re.sub(
                "^#", "#" * (1 + int(options["heading-offset"])), text, flags=re.MULTILINE
            )
        step = os.path.relpath(file.parent, page.parent)
        return LINK.sub(lambda link: f"]({os.path.normpath(f'{step}/{link[1]}')}", text)

    return INCLUDE.sub(included, page.read_text() if source is None else source)


def blocks(page: Path) -> list[Block]:
    """All code of a page, in its order."""
    text, found = text_of(page), []
    for m in FENCE.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, m.start()) + 1}"
        found.append(Block(m["language"], m["code"], m["said"], place))
    return found


def commands(code: str) -> list[str]:
    """The commands of an ``sh`` block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def run(page: Path, folder: Path) -> None:
    """Run a page in a folder."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as for a script that lies there
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.code)
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), _kept(block, said):
            if block.language == "python":
                exec(compile(block.code, block.place, "exec"), namespace)
            else:
                for command in commands(block.code):
                    _run_command(shlex.split(command))
        if block.said is not None and not is_as_said(block.said, said.getvalue()):
            raise SystemExit(f"{block.place} gives\n{said.getvalue()}\nin place of\n{block.said}")


def is_as_said(expected: str, said: str) -> bool:
    """Whether a page is right about an output; line breaks do not count."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    return re.search(r"\s*.*?\s*".join(parts), " ".join(said.split())) is not None


@contextlib.contextmanager
def _kept(block: Block, said: io.StringIO) -> Iterator[None]:
    """Take an error that the page speaks of for an output."""
    try:
        yield
    except BaseException as error:
        if block.said is None:
            error.add_note(f"in {block.place}, which had printed: {said.getvalue()}")
            raise
        said.write(f"\n{type(error).__name__}: {error}")


def _run_command(words: list[str]) -> None:
    from memtools import cli

    line = " ".join(words)
    if any(line.startswith(start) for start in LEFT_ALONE):
        return
    match words:
        case ["python", file, *_]:
            sys.argv = words[1:]
            runpy.run_path(file, run_name="__main__")
        case ["torchrun", *rest]:
            launch = [sys.executable, "-m", "torch.distributed.run", *rest]
            done = subprocess.run(launch, capture_output=True, text=True)
            print(done.stdout, done.stderr)
            done.check_returncode()
        case ["memtools", "study", *_]:
            cli._parser().parse_args(words[1:])
        case ["memtools", *rest]:
            code = cli.main(rest)
            if code:
                raise SystemExit(f"{line} ends with {code}")
        case _:
            raise SystemExit(f"nobody knows how to run: {line}")


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
