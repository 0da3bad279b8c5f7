"""``memtools score``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from memtools.extras import require

__all__ = ["add_score"]


def add_score(commands: Any) -> None:
    """Add ``score`` to the commands."""
    from memtools.scoring import SCORES

    summary = "score every example of a data set with one model"
    score = commands.add_parser(
        "score",
        help=summary,
        description="Score every example of a data set with one model. A FACTORY is "
        "package.module:function or path/to/file.py:function, called without arguments. To use "
        "several processes: torchrun --nproc-per-node N -m memtools score ...",
        # Only what is given counts: a resumed run keeps its settings.
        argument_default=argparse.SUPPRESS,
    )
    add = score.add_argument
    add("--model", metavar="FACTORY", help="returns the model, a torch.nn.Module")
    add("--data", metavar="FACTORY", help="returns the map-style data set of (input, target)")
    add("--out", type=Path, required=True, help="the folder for the Parquet files")
    add("--resume", action="store_true", default=False, help="go on with the scores in --out")
    add(
        "--scores", nargs="+", choices=SCORES, metavar="SCORE",
        help=f"of {', '.join(SCORES)}; all but the last",
    )  # fmt: skip
    add("--radius", type=float, help="search critical samples, in the units of the inputs")
    add("--method", choices=("lass", "auto"), help="of the search; lass")
    add("--bounds", nargs=2, type=float, metavar=("LOW", "HIGH"), help="allowed inputs; none")
    add("--embedding", help="for token ids, the module that looks them up")
    add("--batch-size", type=int, help="examples a pass; 256")
    add("--chunk-size", type=int, help="examples a file, which a kill may cost; 8192")
    add("--threads", type=int, help="threads of a process on the CPU; 1")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...; auto")
    add("--workers", type=int, default=0, help="processes that read data, for each process; 0")
    score.set_defaults(command=_run_score)


def _run_score(out: Path, resume: bool, device: str, workers: int, **given: Any) -> None:
    from torch import nn

    from memtools.scoring import call_factory, recorded_settings, score
    from memtools.training.devices import resolve_device

    require("pyarrow")
    recorded = (recorded_settings(out) if resume else None) or {}
    factories = {}
    for name in ("model", "data"):
        before = recorded.pop(name, None)  # which is not called: the folder may be anybody's
        if name not in given:
            found = "" if before is None else f"; the scores in {out} were made with {before!r}"
            raise ValueError(
                f"--{name} is missing; give package.module:function or "
                f"path/to/file.py:function{found}"
            )
        factories[name] = given.pop(name)
    options = recorded | given
    place = resolve_device(device)
    model = call_factory("model", factories["model"])
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model {factories['model']} returned {type(model).__name__}, expected a "
            "torch.nn.Module; return the model itself"
        )
    dataset = call_factory("data", factories["data"])
    try:
        done = score(
            model.to(place), dataset, out, workers=workers, resume=resume, about=factories,
            progress=True, **options,
        )  # fmt: skip
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if done.chunks == 0:
        print(f"memtools: nothing left to do in {out} for this process", file=sys.stderr)
