"""The site is built without a warning, all code on it runs, and it leaves out nothing public."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import box_of, drawn, imports, modules, own_imports, reached, svg
from code_blocks import blocks, commands, is_as_said, pages, text_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DRAWN = {"start", "concepts"}
"""Pages whose code the build of the site runs, for its pictures."""
PUBLIC = [
    "memtools",
    "memtools.data",
    "memtools.integrations.lightning",
    "memtools.integrations.loggers",
    "memtools.integrations.ray",
    "memtools.integrations.transformers",
    "memtools.metrics",
    "memtools.models",
    "memtools.pruning",
    "memtools.scores",
    "memtools.scoring",
    "memtools.testing",
    "memtools.training",
    "memtools_kernels",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built from a copy without pictures, beside the files that it shows."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(DOCS, root / "docs", ignore=shutil.ignore_patterns("_build", "_made"))
    for name in ("README.md", "CONTRIBUTING.md", "bench", "kernels", "memtools"):
        (root / name).symlink_to(ROOT / name)
    out = root / "site"
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*build, root / "docs", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_every_picture_of_the_site_is_there(site):
    for page in pages():
        html = (site / page.relative_to(DOCS)).with_suffix(".html")
        for source in re.findall(r'<img [^>]*src="([^"]+)"', html.read_text()):
            assert (html.parent / source).exists(), (html, source)


def test_links_of_the_site_lead_somewhere(site):
    for html in site.rglob("*.html"):
        for link in re.findall(r'<a [^>]*href="(?!https?:|#)([^"#]+)', html.read_text()):
            assert (html.parent / link).exists(), (html, link)


def test_no_public_name_is_missing(site):
    listed = {
        anchor
        for html in (site / "reference").glob("*.html")
        for anchor in re.findall(r'<dt [^>]*id="([\w.]+)"', html.read_text())
    }
    missing = [
        f"{name}.{public}"
        for name in PUBLIC
        for public in importlib.import_module(name).__all__
        if f"{name}.{public}" not in {*listed, *PUBLIC}
    ]
    assert missing == []


def runnable(page: Path) -> bool:
    return page.stem not in DRAWN and any(block.language == "python" for block in blocks(page))


@pytest.mark.parametrize(
    "page", [page for page in pages() if runnable(page)], ids=lambda page: page.stem
)
def test_code_runs_as_the_page_says(page, tmp_path):
    command = [sys.executable, str(DOCS / "code_blocks.py"), str(page), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pages_without_python_name_no_command_that_is_not_run():
    for page in pages():
        if not runnable(page) and page.stem not in DRAWN:
            code = [command for b in blocks(page) for command in commands(b.code)]
            assert not [command for command in code if "memtools " in command], page


def test_every_mistake_on_the_page_of_errors_is_made():
    sections = (DOCS / "troubleshooting.md").read_text().split("\n## ")[1:]
    assert len(sections) > 15
    for section in sections:
        assert re.search(r"^```(python|sh)\n.*?^```\n\n```text\n", section, re.M | re.S), section


def test_a_page_that_is_wrong_about_its_code_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    for code, said, is_right in (
        ("1 / 0", "ZeroDivisionError: division by zero", True),
        ("1 / 0", "ZeroDivisionError: division by one", False),
        ("1 / 1", "ZeroDivisionError: division by zero", False),
        ("print(0.25)", "0...", True),
        ("print(0.25)", "1...", False),
        ("1 / 0", None, False),
    ):
        text = f"```python\n{code}\n```\n" + (f"\n```text\n{said}\n```\n" if said else "")
        page.write_text(text)
        command = [sys.executable, str(DOCS / "code_blocks.py"), str(page), str(tmp_path)]
        assert (subprocess.run(command, capture_output=True).returncode == 0) is is_right, text


def test_line_breaks_of_a_message_do_not_count():
    assert is_as_said("a b ... d", "a\n b c\nd")
    assert not is_as_said("a b", "ab")


def test_a_part_of_another_file_is_found_with_its_links_from_here(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.md").write_text("no\nbegin\n[x](file.py) [y](https://z)\nend\nno")
    page = tmp_path / "page.md"
    page.write_text("```{include} sub/other.md\n:start-after: begin\n:end-before: end\n```\n")
    assert text_of(page).strip() == "[x](sub/file.py) [y](https://z)"


def test_drawing_says_who_imports_whom():
    found = {
        (box_of(name), box_of(other))
        for name, file in modules()
        for other in own_imports(file)
        if box_of(name) != box_of(other)
    }
    titles = re.findall(r"<title>(\w+) imports (\w+)</title>", svg())
    assert set(titles) <= found
    assert all(other in reached(name, set(titles)) for name, other in found)


def test_drawing_shows_every_module():
    names = set(re.findall(r'class="name">(\w+)<', svg()))
    assert names == {box_of(name) for name, _ in modules()} | {"memtools_kernels"}


def test_an_import_that_others_imply_is_not_drawn():
    arrows = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}
    assert drawn(arrows) == {("a", "b"), ("b", "c"), ("a", "d")}
    assert imports()
