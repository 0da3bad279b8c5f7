"""The site: ``python -m sphinx -W -b html docs docs/_build``.

The pictures of a page are what its code draws: the pages in ``DRAWN`` are run first, if they have
changed (``docs/_made`` can be deleted).
"""

import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import memtools

HERE = Path(__file__).parent
MADE = HERE / "_made"
DRAWN = ["start", "concepts"]
SHOWN_ON = {
    "bench/README.md": "benchmarks.md",
    "kernels/README.md": "benchmarks.md",
    "kernels/ADDING.md": "how-to/own-operator.md",
    "docs/studies.md": "studies.md",
}
"""Files of the repository that are a part of a page."""

sys.path.insert(0, str(HERE))
import architecture  # noqa: E402
import code_blocks  # noqa: E402

project, author, copyright = "memtools", "the memtools authors", "the memtools authors"
version = release = memtools.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
]
exclude_patterns = ["_build", "_made"]
html_theme = "furo"
html_title = "memtools"
html_static_path = ["style"]
html_css_files = ["style.css"]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
napoleon_use_ivar = True


def make_pictures(app: Any) -> None:
    """Run the pages that draw, and draw the modules."""
    for name in DRAWN:
        page, folder = HERE / f"{name}.md", MADE / name
        stamp, digest = folder / "made-by", sha256(page.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(HERE / "code_blocks.py"), str(page), str(folder)]
        subprocess.run(command, check=True, env={**os.environ, "MPLBACKEND": "Agg"})
        stamp.write_text(digest)
    (MADE / "modules.svg").write_text(architecture.svg())


def put_together(app: Any, name: str, source: list[str]) -> None:
    """A page with what it includes; links to files that are shown on a page lead to that page."""
    page = HERE / f"{name}.md"
    text = code_blocks.text_of(page, source[0])
    for file, shown in SHOWN_ON.items():
        there = os.path.relpath(HERE.parent / file, page.parent)
        text = text.replace(f"]({there}", f"]({os.path.relpath(HERE / shown, page.parent)}")
    source[0] = re.sub('<a id="(.*)"></a>', r"(\1)=", text)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", make_pictures)
    app.connect("source-read", put_together)
