"""The tables of what ``python -m bench.matrix`` has kept."""

import json
from pathlib import Path

from bench.cases.table import OURS
from bench.gradient_norms_report import number, table
from bench.kept import Record, by_two

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "matrix.csv"
SETTINGS = RESULTS / "matrix.json"
PLAIN = ("eager", "naive loop", "vmap", "torch.compile")
"""What has a column of its own."""
NO_TOOLS = (*PLAIN, "vmap chunked", "expanded weights")
"""What is PyTorch alone."""


def results() -> dict[str, dict[str, Record]]:
    """Records by operation and implementation."""
    return by_two(ROWS, "problem", "tool")


def fastest(rows: list[Record]) -> Record | None:
    right = [row for row in rows if row["status"] == "ok"]
    return min(right, key=lambda row: float(row["ratio"]), default=None)


def beside_ours(row: Record) -> str:
    low, high = (number(row[f"ratio_{p}"]) for p in ("p20", "p80"))
    return f"{number(row['ratio'])} ({low} to {high})"


def error(row: Record) -> str:
    value = float(row["relative_error"])
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def milliseconds(row: Record) -> str:
    value = 1000 * float(row["seconds"])
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def cell(row: Record | None, best: Record | None) -> str:
    """The ratio, and whether it counts."""
    if row is None or row["status"] == "absent":
        return "n/a"
    if row["status"] == "refuses":
        return "refuses"
    text = f"**{number(row['ratio'])}**" if row is best else number(row["ratio"])
    return text if row["status"] == "ok" else f"{text}, wrong"


def verdict(rows: dict[str, Record]) -> str:
    """How memtools does beside the fastest of the others that is right."""
    other = fastest([row for way, row in rows.items() if not way.startswith(OURS)])
    if other is None:
        return "alone in being right"
    ratio = float(other["ratio"])
    if ratio >= 1:
        return f"{number(str(ratio))} times as fast as {other['tool']}"
    return f"**{number(str(1 / ratio))} times as slow** as {other['tool']}"


def overview() -> str:
    """An operation a row."""
    lines = []
    for name, rows in results().items():
        tools = [
            row for way, row in rows.items() if way not in NO_TOOLS and not way.startswith(OURS)
        ]
        best = fastest(list(rows.values()))
        tool = fastest(tools)
        ours = milliseconds(rows[OURS])
        shown = cell(tool, best) if tool else ("none is right" if tools else "n/a")
        lines.append(
            [
                name,
                f"**{ours}**" if best is rows[OURS] else ours,
                *(cell(rows.get(way), best) for way in PLAIN),
                f"{shown} ({tool['tool']})" if tool else shown,
                verdict(rows),
            ]
        )
    return table(["", OURS, *PLAIN, "fastest tool that is right", "memtools is"], lines)


def details() -> str:
    """An implementation a row."""
    operations = json.loads(SETTINGS.read_text())["operations"]
    lines = []
    for name, rows in results().items():
        best = fastest(list(rows.values()))
        for way, row in rows.items():
            first = f"{name}: {operations[name]['what']}" if way == OURS else ""
            if not row["ratio"]:
                said = row["message"].replace("`", "").replace("|", "/")
                status = "not installed" if row["status"] == "absent" else f"refuses: `{said}`"
                lines.append([first, way, status, "", "", ""])
                continue
            ratio = beside_ours(row)
            wrong = "" if row["status"] == "ok" else ", wrong"
            lines.append(
                [
                    first,
                    way,
                    f"**{ratio}**" if row is best else ratio,
                    milliseconds(row),
                    f"{error(row)}{wrong}",
                    f"{float(row['memory_mib']):.1f}" if row["memory_mib"] else "n/a",
                ]
            )
    head = ["operation", "implementation", "time over memtools", "time", "error", "MiB"]
    return table(head, lines)


def page() -> str:
    """For ``bench/README.md``."""
    settings = json.loads(SETTINGS.read_text())
    commits = dict.fromkeys(found["commit"][:7] for found in settings["operations"].values())
    versions = ", ".join(f"{name} {version}" for name, version in settings["peers"].items())
    quick = (
        "**A quick run of few rounds: these numbers mean little.** " if settings["quick"] else ""
    )
    return "\n\n".join(
        [
            overview(),
            "Time over that of memtools in the same round, median over the rounds; bold: the "
            "fastest that is right.",
            details(),
            "In brackets the 20th and 80th percentile. Error: the largest difference from the "
            "float64 oracle over the largest value, where nothing else is said; what is wrong "
            "is further off than "
            f"[the bound of its operation](results/{SETTINGS.name}). MiB: resident at the peak of "
            "a second call, beyond what is there before it.",
            f"{quick}{settings['clock']}, {settings['threads']} thread of "
            f"{settings['processor']} ({settings['device']}). torch {settings['torch']}, commit "
            f"{', '.join(commits)}; {versions}.",
        ]
    )
