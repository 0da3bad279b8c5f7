"""Score every example of a data set, alone or under ``torchrun``."""

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memtools.critical.box import Bounds
from memtools.extras import require
from memtools.scoring.batches import check_dataset, read_batch, read_batches
from memtools.scoring.fingerprints import fingerprint_of_examples, fingerprint_of_model
from memtools.scoring.folder import MOST_CHUNKS
from memtools.scoring.launch import Share, described, shared_folder
from memtools.scoring.pace import Pace, say
from memtools.scoring.scorer import Scorer
from memtools.scoring.wanted import Wanted

__all__ = ["Scored", "score"]

BATCH_SIZE = 256
CHUNK_SIZE = 8192
SAMPLE = 16
"""Examples of the data set that its fingerprint is made of."""


@dataclass(frozen=True)
class Scored:
    """What a process did.

    Attributes:
        folder: Where the table is.
        chunks: So many were missing and are written now, by this process.
        examples: In these chunks.
        not_finite: Of these, examples with NaN or infinity among their scores.
    """

    folder: Path
    chunks: int
    examples: int
    not_finite: int


def score(
    model: nn.Module,
    dataset: Any,
    out: str | os.PathLike[str],
    *,
    scores: Iterable[str] | None = None,
    radius: float | Tensor | None = None,
    method: str = "lass",
    bounds: Bounds | None = None,
    embedding: str | None = None,
    batch_size: int = BATCH_SIZE,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 1,
    workers: int = 0,
    resume: bool = True,
    about: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Scored:
    """Score every example of a data set with a model, and write a table.

    The table is a folder of Parquet files of ``chunk_size`` examples each, with columns ``index``,
    ``target`` and the scores. A chunk appears whole or not at all and is never done twice: after a
    kill at any moment the same call goes on, also with another number of processes. Under
    ``torchrun`` the processes share the chunks that are missing. On one kind of device the scores
    are the same to the last bit, whatever was interrupted and however many took part.

    The model is measured in eval mode where it is, and left as it was. An example whose logits are
    NaN or infinite has NaN for its scores, -1 for its prediction, and is counted in the end.

    Args:
        model: Maps inputs to logits of shape ``(n, C)``.
        dataset: Map-style: ``dataset[i]`` is ``(input, target)`` with whatever else behind, and
            the same each time, so without augmentation.
        out: The folder.
        scores: Names from ``memtools.scoring.SCORES``; ``None`` for all but ``is_critical``.
        radius: Adds ``is_critical``: the half-width of the box that
            :func:`memtools.find_critical` searches, in the units of the inputs.
        method: Of the search, ``"lass"`` or ``"auto"``.
        bounds: Of the search, smallest and largest allowed input.
        embedding: For integer inputs, the name of the module that looks them up.
        batch_size: Examples a pass.
        chunk_size: Examples a file, which is what a kill may cost each process.
        threads: Of torch on the CPU for the time of the call. It may change last bits, and is
            therefore not left to the number of processes.
        workers: Processes that read the data.
        resume: Whether to go on if there are scores of the same settings in ``out`` already.
        about: More to be recorded, and compared when a run goes on; by default the names of the
            classes of model and data set.
        progress: Whether to tell on standard error how far it is.

    Returns:
        What this process did.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range, an example cannot be scored, or ``out`` holds
            something else: scores with other settings, weights, data, device or versions, or any
            scores without ``resume``.
        ModuleNotFoundError: If pyarrow is not installed.

    Example:
        >>> import tempfile, torch
        >>> from memtools.data import Tensors
        >>> from memtools.scoring import read, score
        >>> data = Tensors(torch.randn(10, 3), torch.ones(10).long())
        >>> with tempfile.TemporaryDirectory() as out:
        ...     done = score(torch.nn.Linear(3, 2), data, out, scores=["margin"], chunk_size=4)
        ...     table = read(out)
        >>> done.chunks, list(table), table["margin"].shape
        (3, ['index', 'target', 'margin'], (10,))
    """
    require("pyarrow")
    sizes = {"batch_size": batch_size, "chunk_size": chunk_size, "threads": threads}
    for name, value in sizes.items():
        if operator.index(value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if operator.index(workers) < 0:
        raise ValueError(f"workers must be a number of processes, 0 or more, got {workers}")
    wanted = Wanted.of(scores, radius, method, bounds, embedding)
    check_dataset(dataset)
    if len(dataset) > chunk_size * MOST_CHUNKS:
        raise ValueError(
            f"chunk_size {chunk_size} cuts {len(dataset)} examples into more than {MOST_CHUNKS} "
            f"files; pass {-(-len(dataset) // MOST_CHUNKS)} or more"
        )
    scorer = Scorer(model, wanted)
    names = {"model": type(scorer.model).__name__, "data": type(dataset).__name__}
    settings = {
        **(names if about is None else about),
        **asdict(wanted),
        "scores": list(wanted.scores),
        **sizes,
    }
    facts = {
        "num_examples": len(dataset),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "weights": fingerprint_of_model(model),
        "examples": _fingerprint_of(dataset),
    }
    with (
        _same_bits(threads),
        shared_folder(
            Path(out), described(settings, facts, scorer.device), resume, scorer.device
        ) as share,
    ):
        return _fill(share, scorer, dataset, batch_size, workers, progress)


def _fill(
    share: Share, scorer: Scorer, dataset: Any, batch_size: int, workers: int, progress: bool
) -> Scored:
    """Write the chunks that fall to this process."""
    folder, chunks = share.folder, share.folder.chunks
    order = [batch for chunk in share.mine for batch in chunks.batches(chunk, batch_size)]
    reader = read_batches(dataset, order, workers=workers, pin_memory=scorer.device.type == "cuda")
    examples = sum(len(chunks.indices(chunk)) for chunk in share.mine)
    tell = partial(say, share.who) if progress else _be_quiet
    pace = Pace(examples, len(share.mine), tell)
    bad, first_bad = 0, 0
    for chunk in share.mine:
        parts = []
        for indices in chunks.batches(chunk, batch_size):
            inputs, targets = next(reader)
            try:
                found = scorer(inputs, targets)
            except ValueError as error:
                message = f"examples {indices[0]} to {indices[-1]}: {error}"
                raise ValueError(message) from error
            parts.append({"index": np.array(indices), "target": targets.numpy()} | found)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in chunks.columns}
        folder.write(chunk, columns)
        pace.add(len(columns["index"]))
        spoilt = np.flatnonzero(_is_spoilt(columns))
        if len(spoilt) and not bad:
            first_bad = int(columns["index"][spoilt[0]])
        bad += len(spoilt)
    if bad:
        tell(
            f"{bad} of {examples} examples have scores that are NaN or infinite (first: example "
            f"{first_bad}); check their inputs"
        )
    return Scored(folder.path, len(share.mine), examples, bad)


def _is_spoilt(columns: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    spoilt = columns.get("prediction", columns["index"]) < 0
    for values in columns.values():
        spoilt = spoilt | ~np.isfinite(values)
    return spoilt


def _fingerprint_of(dataset: Any) -> str:
    """Hash of some examples from all over the data set.

    Raises:
        ValueError: If the first of them is another one when it is read again.
    """
    last = len(dataset) - 1
    places = sorted({round(i * last / (SAMPLE - 1)) for i in range(SAMPLE)})
    first, again = (fingerprint_of_examples(*read_batch(dataset, [0])) for _ in range(2))
    if first != again:
        raise ValueError(
            "data gives another example 0 each time it is read, so that its scores are one random "
            "draw; leave out random crops and flips"
        )
    return fingerprint_of_examples(*read_batch(dataset, places))


@contextmanager
def _same_bits(threads: int) -> Iterator[None]:
    """What rounding could depend on, the same in all processes of all launches, for a block."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        # torchrun gives each of several processes one thread, and a single one all of them.
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]


def _be_quiet(line: str) -> None:
    pass
