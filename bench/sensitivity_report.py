"""Tables and figure of what ``python -m bench.sensitivity`` has kept."""

import csv
import hashlib
import json
from pathlib import Path

from bench.gradient_norms_report import Record, number, table
from memtools.report.drawing import canvas, save

RESULTS = Path(__file__).parent / "results"
COSTS = RESULTS / "sensitivity_cost.csv"
MEMORY = RESULTS / "sensitivity_memory.csv"
APPROXIMATIONS = RESULTS / "sensitivity_approximation.csv"
SETTINGS = RESULTS / "sensitivity.json"
FIGURE = RESULTS / "sensitivity.svg"
STYLES = {
    "unrolled loop": ("#E69F00", (0, (4, 1.5)), "s"),
    "memtools, every update kept": ("#009E73", (0, (1, 1)), "^"),
    "memtools, every √T-th kept": ("#0072B2", "solid", "o"),
}
KINDS = {
    "spaced": ("at=tape.spaced({})", "evaluation times"),
    "window": ("window={}", "updates back from each time"),
    "sketch": ("sketch={}", "projections of each gradient"),
}


def digest() -> str:
    """What ties the figure to the results that it shows."""
    files = (COSTS, MEMORY, APPROXIMATIONS, SETTINGS)
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def _rows(path: Path) -> list[Record]:
    with path.open() as file:
        return list(csv.DictReader(file))


def cost_table() -> str:
    rows = []
    costs = _rows(COSTS)
    for key in dict.fromkeys((row["threads"], row["times"]) for row in costs):
        of = {row["tool"]: row for row in costs if (row["threads"], row["times"]) == key}
        ours, training, unrolled = of["memtools"], of["training"], of["unrolled loop"]
        spread = f"{number(unrolled['ratio_p20'])} to {number(unrolled['ratio_p80'])}"
        rows.append(
            [
                *key,
                f"{float(ours['seconds']):.2f} s",
                f"{number(str(1 / float(training['ratio'])))}",
                f"{float(unrolled['seconds']):.1f} s",
                f"**{number(unrolled['ratio'])}** ({spread})",
                f"{float(ours['relative_error']):.0e}".replace("e-0", "e-"),
            ]
        )
    head = ["threads", "evaluation times", "memtools", "times the training", "unrolled loop"]
    return table([*head, "unrolled / memtools", "largest difference"], rows)


def approximation_table() -> str:
    rows = []
    for row in _rows(APPROXIMATIONS):
        call, _ = KINDS[row["kind"]]
        rows.append(
            [
                f"`{call.format(row['setting'])}`",
                number(row["cost"]),
                f"{100 * float(row['median_error']):.2g}%",
                f"{float(row['rank_correlation']):.4f}",
                f"{float(row['gini_error']):+.3f}",
            ]
        )
    head = ["", "time", "median error", "rank correlation", "error of the Gini coefficient"]
    return table(head, rows)


def _where() -> str:
    settings = json.loads(SETTINGS.read_text())
    quick = "**A quick run: these numbers mean little.** " if settings["quick"] else ""
    return (
        f"{quick}torch {settings['torch']}, "
        f"{settings['processor']}, commit {settings['commit'][:7]}."
    )


def compact() -> str:
    """For the main README."""
    return f"{cost_table()}\n\n{_where()}"


def page() -> str:
    """For ``bench/README.md``."""
    return "\n\n".join(
        [
            cost_table(),
            "The paper's setting: TinyMLP of 2 x 16 units on 1,000 real images of 14x14, batches "
            "of 50, 400 updates (20 epochs) of plain SGD, float32. The unrolled loop is autograd "
            "through one graph of the whole training, one sweep back for each evaluation time. "
            "Both run in turn inside one process, on as many threads: medians over the rounds, "
            "20th and 80th percentile in brackets.",
            f"![Peak memory against the number of updates](results/{FIGURE.name})",
            "Memory at the peak of training, recording and the sensitivities at 8 times.",
            approximation_table(),
            "Approximations to the mean over all 400 updates: time over that of the exact result, "
            "the error of an example in the middle of all, the rank correlation with the exact "
            "values, and what the Gini coefficient is off; one thread. " + _where(),
        ]
    )


def draw() -> None:
    points = _rows(MEMORY)
    with canvas(6, 4) as sheet:
        from matplotlib.ticker import FuncFormatter

        axes = sheet.subplots()
        for tool, (color, dashes, marker) in STYLES.items():
            chosen = [p for p in points if p["tool"] == tool]
            axes.loglog(
                [int(p["updates"]) for p in chosen],
                [float(p["memory_mib"] or "nan") for p in chosen],
                color=color,
                linestyle=dashes,
                marker=marker,
                markersize=4,
                label=tool,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for scale in (axes.xaxis, axes.yaxis):
            scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_xticks(sorted({int(p["updates"]) for p in points}))
        axes.set_xlabel("updates T of the training")
        axes.set_ylabel("peak memory (MiB)")
        axes.legend()
        save(sheet, FIGURE, description=digest())
