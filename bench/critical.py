"""Search for critical samples: what is found, passes and time, beside attack libraries and a loop.

``python -m bench.critical [--held-out] [--quick] [--only MODEL] [--data-dir DIR]
[--results FOLDER]``: search on one thread, print, and keep the results in ``bench/results``; with
``--quick`` or ``--only`` they are kept only in a folder that is named. ``--held-out`` takes models
and radii on which nothing was tuned, without the other tools.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import critical_reference
from bench.critical_models import HELD_OUT, RECIPES, TUNED, images, trained
from bench.critical_peers import (
    LOOPS,
    PACKAGES,
    PEERS,
    STEPS,
    STEPS_ACROSS,
    Cell,
    Peer,
    Search,
)  # fmt: skip
from bench.kept import RESULTS, circumstances, first_words, keep, show, versions_of
from bench.searched import Whole, counted, flips
from bench.timing import QUICK, Effort, Make, Timing, in_turn
from memtools import CriticalSearch, find_critical

RADII, HELD_OUT_RADII = (0.3, 2, 8, 30), (1, 4, 16)
"""In units of a pixel's 255 steps."""
FULL = Effort(share=10, fewest=3, most=7)
TIMED_IN_LOOP = 100
REFERENCE = "lass"
OURS: dict[str, dict[str, Any]] = {
    REFERENCE: {"method": "lass", "max_steps": STEPS},
    "auto": {"method": "auto"},
    "auto, effort 0.2": {"method": "auto", "effort": 0.2},
}


class Row(NamedTuple):
    """A search by one method; the fields are the columns."""

    model: str
    radius: float
    method: str
    union: int
    """Examples that the reference finds."""
    status: str = "ok"
    """``ok``, ``wrong`` (a flip that it claims is none), ``refuses`` or ``absent``."""
    found: int | None = None
    of_union: int | None = None
    beyond_lass: int | None = None
    """Examples that our LASS does not find."""
    forwards: int | None = None
    backwards: int | None = None
    ratio: float | None = None
    """Time over that of our LASS."""
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    rounds: int | None = None
    seconds: float | None = None
    message: str = ""

    def timed(self, timing: Timing, scale: float = 1.0) -> "Row":
        return self._replace(
            ratio=timing.ratio * scale,
            ratio_p20=timing.p20 * scale,
            ratio_p80=timing.p80 * scale,
            rounds=timing.rounds,
            seconds=timing.seconds * scale,
        )


def ours(method: str, cell: Cell) -> Search:
    options = OURS[method]
    return partial(
        find_critical, cell.model, cell.inputs, radius=cell.radius, bounds=(0, 1), **options
    )


METHODS: dict[str, Peer] = {name: partial(ours, name) for name in OURS} | LOOPS | PEERS


def looked_at(row: Row, cell: Cell, union: Tensor, search: Search) -> tuple[Row, Tensor]:
    """What a search takes and finds, and the mask of that."""
    torch.manual_seed(0)  # some tools start at random
    with counted(cell.model) as passes:
        result = search()
    points = result.points if isinstance(result, CriticalSearch) else result
    mask = flips(cell.model, cell.inputs, points, cell.radius)
    claims = isinstance(result, CriticalSearch) and bool((result.is_critical & ~mask).any())
    row = row._replace(
        status="wrong" if claims else "ok",
        found=int(mask.sum()),
        of_union=int((mask & union).sum()),
        forwards=passes.forwards,
        backwards=passes.backwards,
    )
    return row, mask


def timed_share(method: str, cell: Cell, passes: int) -> tuple[Make, float]:
    """The loop over some of the examples, and what its time is to be multiplied by."""
    share = torch.randperm(len(cell.inputs), generator=torch.Generator().manual_seed(0))
    search = LOOPS[method](cell, share[:TIMED_IN_LOOP])
    with counted(cell.model) as of_share:
        search()
    return lambda: search, passes / of_share.total


def measured(first: Row, cell: Cell, methods: Iterable[str], effort: Effort) -> Iterator[Row]:
    """Rows of all methods on one cell, our LASS first."""
    union = critical_reference.union(cell.model, cell.inputs, cell.radius)
    others: dict[str, Make] = {}
    rows: list[Row] = []
    scale: dict[str, float] = {}
    lass = torch.empty(0)
    for method in methods:
        row = first._replace(method=method, union=int(union.sum()))
        try:
            search = METHODS[method](cell)
            row, mask = looked_at(row, cell, union, search)
        except ImportError as error:
            rows.append(row._replace(status="absent", message=str(error)))
            continue
        except Exception as error:
            if method == REFERENCE:
                raise
            rows.append(row._replace(status="refuses", message=first_words(error)))
            continue
        others[method] = partial(_itself, search)
        lass = mask if method == REFERENCE else lass
        if method in LOOPS:
            passes = (row.forwards or 0) + (row.backwards or 0)
            others[method], scale[method] = timed_share(method, cell, passes)
        rows.append(row._replace(beyond_lass=int((mask & ~lass).sum())))
    timings = in_turn(others.pop(REFERENCE)(), others, effort)
    timings[REFERENCE] = timings.pop("")
    for row in rows:
        timing = timings.get(row.method)
        yield row.timed(timing, scale.get(row.method, 1.0)) if timing else row


def _itself(search: Search) -> Search:
    return search


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.critical")
    parser.add_argument("--held-out", action="store_true", help="models that nothing was tuned on")
    parser.add_argument("--quick", action="store_true", help="100 images: to see that it runs")
    parser.add_argument("--only", choices=RECIPES, metavar="MODEL", help="this model alone")
    parser.add_argument("--data-dir", type=Path, default="data", help="where Fashion-MNIST is")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to keep the results")
    arguments = parser.parse_args()
    whole = not (arguments.quick or arguments.only)
    folder = arguments.results or (RESULTS if whole else None)
    effort = QUICK if arguments.quick else FULL
    held_out = arguments.held_out or arguments.only in HELD_OUT

    warnings.simplefilter("ignore")  # other tools' use of deprecated functions
    torch.set_num_threads(1)
    start = time.perf_counter()
    about = circumstances() | {
        "quick": arguments.quick,
        "peers": versions_of(PACKAGES),
        "steps": STEPS,
        "steps_across": STEPS_ACROSS,
        "timed_in_loop": TIMED_IN_LOOP,
        "reference": critical_reference.SETTINGS,
        "models": {},
    }
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n", flush=True)
    show(Row._fields)
    rows: list[Row] = []
    inputs = images(arguments.data_dir)[: 100 if arguments.quick else None]
    about["images"] = len(inputs)
    names = HELD_OUT if held_out else TUNED
    for name in [arguments.only] if arguments.only else names:
        model, accuracies = trained(name, arguments.data_dir)
        about["models"][name] = accuracies
        print(name, accuracies, flush=True)
        for radius in HELD_OUT_RADII if held_out else RADII:
            cell = Cell(Whole(model).requires_grad_(False).eval(), inputs, radius / 255)
            first = Row(name, radius, "", 0)
            for row in measured(first, cell, OURS if held_out else METHODS, effort):
                show(row)
                rows.append(row)
    about["seconds"] = round(time.perf_counter() - start)
    print(f"{about['seconds']} s")
    if folder is not None:
        stem = "critical_held_out" if held_out else "critical"
        folder.mkdir(parents=True, exist_ok=True)
        keep(folder / f"{stem}.csv", Row, rows)
        (folder / f"{stem}.json").write_text(json.dumps(about, indent=2) + "\n")
        print("kept in", folder, "- python -m bench.readme makes the tables of it")


if __name__ == "__main__":
    main()
