"""The floors of the two packages, who imports whom, and a drawing of both.

The floors are those of the table in CONTRIBUTING.md; the imports are read from the source.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
WIDTH, BOX, ROW, LEFT = 1000, 30, 92, 16
STYLE = """<style>
svg { background: #fff; font-family: sans-serif }
rect { fill: #fff; stroke: #444 }
.floor { fill: #f4f4f0; stroke: none }
.name { text-anchor: middle; font-size: 15px }
.meaning { fill: #666; font-size: 12px }
path { fill: none; stroke: #0072B2; opacity: .55 }
</style>
<defs><marker id="tip" markerWidth="7" markerHeight="6" refX="6" refY="3" orient="auto">
<polygon points="0 0,7 3,0 6" fill="#0072B2"/></marker></defs>"""


@dataclass(frozen=True)
class Floor:
    """Names of modules that may import each other, and those of the floors below."""

    number: int
    names: tuple[str, ...]
    meaning: str


def floors() -> list[Floor]:
    """From the ground up."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = []
    for number, cell, meaning in re.findall(r"^\| (\d) \| (.*) \| (.*) \|$", text, re.MULTILINE):
        names = [name.removeprefix("memtools.") for name in re.findall(r"`([\w.]+)`", cell)]
        found.append(Floor(int(number), tuple(names), meaning))
    return sorted(found, key=lambda floor: floor.number)


def modules() -> list[tuple[str, Path]]:
    """Every module of the two packages, and its file; that of the public face excepted."""
    found = [
        (".".join((package.name, *file.relative_to(package).with_suffix("").parts)), file)
        for package in (ROOT / "memtools", ROOT / "kernels" / "memtools_kernels")
        for file in package.rglob("*.py")
    ]
    return [(name, file) for name, file in found if name != "memtools.__init__"]


def own_imports(file: Path) -> set[str]:
    """Modules of the two packages that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "memtools":
            found |= {f"memtools.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            found.add(node.module or "")
    own = {m for m in found if m.split(".")[0] in ("memtools", "memtools_kernels")}
    return own - {"memtools", "memtools.__version__"}


def box_of(module: str) -> str:
    """The name in the table that a module belongs to."""
    words = module.split(".")
    return words[0] if words[0] == "memtools_kernels" else words[1]


def imports() -> set[tuple[str, str]]:
    """Who imports whom, by the names in the table."""
    pairs = [(name, other) for name, file in modules() for other in own_imports(file)]
    return {(box_of(a), box_of(b)) for a, b in pairs if box_of(a) != box_of(b)}


def drawn(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without those that other arrows, one after the other, stand for as well."""
    kept = set(arrows)
    for arrow in sorted(arrows):
        if arrow[1] in reached(arrow[0], kept - {arrow}):
            kept.discard(arrow)
    return kept


def reached(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Where arrows lead to."""
    found, new = set(), {start}
    while new:
        new = {end for begin, end in arrows if begin in new} - found
        found |= new
    return found


def svg() -> str:
    """The drawing: ground floor at the bottom, an arrow for each import that no others imply."""
    rows = floors()
    height = ROW * len(rows) + 8
    places, shapes = {}, []
    for floor in rows:
        top = height - ROW * floor.number + 8
        shapes.append(
            f'<rect x="4" y="{top - 8}" width="{WIDTH - 8}" height="{ROW - 10}" class="floor"/>'
            f'<text x="{LEFT}" y="{top + 8}" class="meaning">{floor.number}: {floor.meaning}</text>'
        )
        widths = [9 * len(name) + 22 for name in floor.names]
        gap = (WIDTH - 2 * LEFT - sum(widths)) / (len(widths) + 1)
        x = LEFT + gap
        for name, width in zip(floor.names, widths, strict=True):
            middle = x + width / 2
            places[name] = (middle, top + 20)
            shapes.append(
                f'<rect x="{x:.0f}" y="{top + 20}" width="{width}" height="{BOX}" rx="5"/>'
                f'<text x="{middle:.0f}" y="{top + 40}" class="name">{name}</text>'
            )
            x += width + gap
    arrows = [_arrow(places[a], places[b], f"{a} imports {b}") for a, b in sorted(drawn(imports()))]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
    return "\n".join([head, STYLE, *shapes, *arrows, "</svg>"])


def _arrow(start: tuple[float, float], end: tuple[float, float], title: str) -> str:
    (x, y), (u, v) = start, end
    if y == v:  # on the same floor: below the boxes
        y, v, bend = y + BOX, v + BOX, y + BOX + 22
    else:
        y, bend = y + BOX, (y + BOX + v) / 2
    path = f"M{x:.0f},{y:.0f} C{x:.0f},{bend:.0f} {u:.0f},{bend:.0f} {u:.0f},{v:.0f}"
    return f'<path d="{path}" marker-end="url(#tip)"><title>{title}</title></path>'
