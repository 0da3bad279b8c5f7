"""Trains the networks of the study and searches for critical samples on the way."""

from pathlib import Path
from typing import Any

from memtools.data import Tensors
from memtools.studies.cells import Cell, Progress, Tell
from memtools.studies.csr.conditions import CONDITIONS
from memtools.studies.csr.config import Config
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.networks import EpochRecorder, prepare, run_networks
from memtools.studies.probes import Probes
from memtools.training import EpochResult, Run

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
        The run folder with ``config.json`` and ``metrics/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data

    def recorder(folder: RunFolder, cell: Cell, train: Tensors, tell: Tell) -> _Recorder:
        probes = Probes(config, train, data.validation, cell.seed)
        return _Recorder(folder, cell, tell, config.evaluated(), probes)

    return run_networks(
        "csr",
        config,
        out,
        data,
        cells(config),
        recorder,
        lines=len(config.evaluated()),
        progress=progress,
    )


class _Recorder(EpochRecorder):
    """Lines with the critical sample ratios."""

    def __init__(
        self, folder: RunFolder, cell: Cell, tell: Tell, epochs: list[int], probes: Probes
    ) -> None:
        super().__init__(folder, cell, tell, epochs)
        self.probes = probes

    def measure(self, run: Run, result: EpochResult) -> dict[str, Any]:
        """Search around the same examples as in every epoch."""
        return self.probes.ratios(run.model, result.epoch)
