"""Tables and figure of what ``python -m bench.gradient_norms`` has kept."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from bench.kept import RESULTS, Record, by_two
from bench.problems import MAIN
from bench.scaling import AXES
from memtools.report.drawing import canvas, save

ROWS = RESULTS / "gradient_norms.csv"
SETTINGS = RESULTS / "gradient_norms.json"
SCALING, SCALING_SETTINGS = RESULTS / "scaling.csv", RESULTS / "scaling.json"
FIGURE = RESULTS / "gradient_norms.svg"
OURS = ("memtools parameters", "memtools both", "memtools inputs")
# Tools that give the norms of the parameter gradients, and those alone, have a column each.
BESIDE = ("plain", "memtools both, first call", "training step", "watch")
TOOLS = {"plain": ("#E69F00", (0, (4, 1.5)), "s"), "memtools both": ("#0072B2", "solid", "o")}
WHATS = {"seconds": ("time (ms)", 1000), "memory_mib": ("peak memory (MiB)", 1)}


def digest() -> str:
    """What ties the figure to the results that it shows."""
    return hashlib.sha256(SCALING.read_bytes() + SCALING_SETTINGS.read_bytes()).hexdigest()


def results() -> dict[str, dict[str, Record]]:
    """Records by problem and tool."""
    return by_two(ROWS, "problem", "tool")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(text: str) -> str:
    value = float(text)
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def comparable(tools: dict[str, Record]) -> list[Record]:
    """Those that give the norms of the parameter gradients, and give them right."""
    others = {*BESIDE, "memtools both", "memtools inputs"}
    return [row for name, row in tools.items() if name not in others and row["status"] == "ok"]


def _cell(row: Record | None, fastest: Record) -> str:
    if row is None or row["status"] == "absent":
        return "n/a"
    if row["status"] == "refuses":
        return f"refuses: {row['message'].split(':')[0]}"
    ratio = number(row["ratio"])
    if row["status"] == "wrong":
        return f"{ratio}, wrong (error {float(row['relative_error']):.0e})".replace("e-0", "e-")
    return f"**{ratio}**" if row is fastest else ratio


def norms_table() -> str:
    problems = results()
    peers = [tool for tool in next(iter(problems.values())) if tool not in {*OURS, *BESIDE}]
    rows = []
    for name, tools in problems.items():
        fastest = min(comparable(tools), key=lambda row: float(row["ratio"]))
        rows.append([name, *(_cell(tools.get(tool), fastest) for tool in (*OURS, *peers))])
    return table(["", *OURS, *peers], rows)


def refusals() -> str:
    """What the tools that refuse say, each once."""
    said: dict[tuple[str, str], list[str]] = {}
    for name, tools in results().items():
        for tool, row in tools.items():
            if row["status"] == "refuses":
                said.setdefault((tool, row["message"]), []).append(name)
    return "\n".join(
        f"- {tool}, {', '.join(names)}: `{message.replace('`', '')}`"
        for (tool, message), names in said.items()
    )


def first_calls() -> str:
    each = [
        f"{name} {number(tools['memtools both, first call']['ratio'])}"
        for name, tools in results().items()
    ]
    return (
        "The first call for a model and a shape finds where the examples are inside the model; "
        f"both norms then cost: {', '.join(each)}."
    )


def steps_table() -> str:
    rows = []
    for name, tools in results().items():
        step, watch = tools["training step"], tools["watch"]
        plain, both = (tools[tool]["memory_mib"] for tool in ("plain", "memtools both"))
        memory = ["n/a", "n/a", "n/a"]
        if plain and both:
            memory = [f"{v:.1f}" for v in (float(plain), float(both))]
            memory.append(f"{float(both) - float(plain):+.1f}")
        same = "yes" if watch["status"] == "ok" else "**no**"
        ms = f"{1000 * float(step['seconds']):.3g} ms"
        rows.append([name, ms, number(watch["ratio"]), same, *memory])
    head = ["", "training step", "with watch", "same weights after 50 steps"]
    head += ["MiB, plain pass", "MiB, both norms", "more MiB"]
    return table(head, rows)


def _exponents() -> str:
    settings = json.loads(SCALING_SETTINGS.read_text())
    rows = [
        [axis.replace("sequence", "sequence length")]
        + [str(tools[tool].get(what, "n/a")) for what in WHATS for tool in TOOLS]
        for axis, tools in settings["exponents"].items()
    ]
    head = ["exponent", *(f"{what}, {tool}" for what in ("time", "memory") for tool in TOOLS)]
    return (
        f"{table(head, rows)}\n\nSlopes over the larger half of the sizes. torch "
        f"{settings['torch']}, {settings['threads']} thread of {settings['processor']}, commit "
        f"{settings['commit'][:7]}."
    )


def _where(settings: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {version}" if version[0].isdigit() else f"{name} ({version})"
        for name, version in settings["peers"].items()
    )
    quick = (
        "**A quick run of few rounds: these numbers mean little.** " if settings["quick"] else ""
    )
    # What was measured once more after a change that concerned it alone.
    again = "".join(
        f" ({problem}: {commit[:7]})" for problem, commit in settings.get("again", {}).items()
    )
    return (
        f"{quick}torch {settings['torch']}, {settings['threads']} thread of "
        f"{settings['processor']}, commit {settings['commit'][:7]}{again}; {versions}."
    )


def page() -> str:
    """For ``bench/README.md``."""
    settings = json.loads(SETTINGS.read_text())
    blocks = [
        norms_table(),
        "Times that of a plain forward and backward pass of the mean loss in the same round, "
        "median over the rounds. Below 1 is possible: that pass forms the weights' gradients, "
        "which the norms do not need. Bold: the fastest that gives the norms of the parameter "
        "gradients, and gives them right. Wrong: an example is further than "
        f"{settings['wrong_above']:g} from a float64 loop over the examples; weights that a tool "
        "leaves out are missing there. The 20th and 80th percentiles are in "
        f"[the results](results/{ROWS.name}).",
        first_calls(),
        "What the tools say that refuse:\n\n" + refusals(),
        steps_table(),
        "`watch`: a whole training step (SGD with momentum) with both norms read, beside the same "
        "step without; “same” is bit by bit. Memory: resident at the peak of the first call, "
        "beyond what is there before it; in the plain pass that is also the weights' gradients.",
        _where(settings),
        f"![Time and memory against batch, sequence length and width](results/{FIGURE.name})",
        _exponents(),
    ]
    return "\n\n".join(blocks)


def compact() -> str:
    """For the main README: memtools beside the fastest of the other tools that is right."""
    settings = json.loads(SETTINGS.read_text())
    rows = []
    for name in MAIN:
        tools = results()[name]
        others = [row for row in comparable(tools) if row["tool"] not in OURS]
        peer = min(others, key=lambda row: float(row["ratio"]))
        failing = [row["tool"] for row in tools.values() if row["status"] in ("wrong", "refuses")]
        ours = (number(tools[tool]["ratio"]) for tool in OURS[:2])
        rows.append(
            [name, *ours, f"{number(peer['ratio'])} ({peer['tool']})", ", ".join(failing) or "none"]
        )
    head = ["", "parameters", "both", "fastest other that is right", "wrong or refuse"]
    return f"{table(head, rows)}\n\n{_where(settings)}"


def draw() -> None:
    with SCALING.open() as file:
        points = list(csv.DictReader(file))
    with canvas(12, 6.4) as sheet:
        from matplotlib.ticker import FuncFormatter, LogFormatterMathtext

        grid = sheet.subplots(len(WHATS), len(AXES), sharex="col", sharey="row")
        for row, (what, (label, unit)) in zip(grid, WHATS.items(), strict=True):
            for axes, (name, axis) in zip(row, AXES.items(), strict=True):
                for tool, (color, dashes, marker) in TOOLS.items():
                    chosen = [p for p in points if (p["axis"], p["tool"]) == (name, tool)]
                    axes.loglog(
                        [int(p["size"]) for p in chosen],
                        [unit * float(p[what] or "nan") for p in chosen],
                        color=color,
                        linestyle=dashes,
                        marker=marker,
                        markersize=4,
                        label="plain pass" if tool == "plain" else "memtools, both norms",
                    )
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(LogFormatterMathtext(base=2))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.minorticks_off()
                axes.set_xticks(axis.sizes)
            row[0].set_ylabel(label)
        for axes, name in zip(grid[0], AXES, strict=True):
            axes.set_title(name.replace("sequence", "sequence length"))
        for axes, axis in zip(grid[1], AXES.values(), strict=True):
            axes.set_xlabel(axis.what)
        handles, labels = grid[0][0].get_legend_handles_labels()
        sheet.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        save(sheet, FIGURE, description=digest())
