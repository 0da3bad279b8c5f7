"""Trains the networks of the memorization study, and goes on after a kill."""

from pathlib import Path

from torch import nn

from memtools.data import Tensors
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.memorization.conditions import CONDITIONS
from memtools.studies.memorization.config import Config
from memtools.studies.memorization.recorder import Recorder
from memtools.studies.networks import prepare, run_networks
from memtools.studies.probes import Probes

__all__ = ["cells", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order."""
    return [Cell(condition, seed) for seed in config.seeds for condition in CONDITIONS]


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study, or those that are not finished yet.

    A run that was killed goes on from the last finished epoch and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch.

    Returns:
        The run folder with ``config.json``, ``metrics/``, ``examples/`` and ``ledgers/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data

    def recorder(folder: RunFolder, cell: Cell, train: Tensors, tell: Tell) -> Recorder:
        probes = Probes(config, train, data.validation, cell.seed)
        return Recorder(folder, cell, tell, config.epochs, num_examples=len(train), probes=probes)

    def finish(
        folder: RunFolder, cell: Cell, recorder: Recorder, model: nn.Module, train: Tensors
    ) -> None:
        recorder.ledger.save(folder.path / "ledgers" / f"{cell.name}.parquet")
        recorder.write_examples(folder.path / "examples" / f"{cell.name}.parquet", model, train)

    return run_networks(
        "memorization",
        config,
        out,
        data,
        cells(config),
        recorder,
        lines=config.epochs,
        results=("ledgers", "examples"),
        finish=finish,
        progress=progress,
    )
