"""Trains on one task and then on another, and looks at both after every epoch."""

from functools import partial
from pathlib import Path
from typing import Any

from memtools import seeds
from memtools.studies.cells import Cell, Progress, Tell, run_cells
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.forgetting.config import Config
from memtools.studies.forgetting.tasks import PHASES, Task, tasks_of
from memtools.studies.networks import build_network, trainer_for
from memtools.studies.networks import prepare as prepare_network
from memtools.training import Callback, EpochResult, Run, evaluate

__all__ = ["cells", "prepare", "run"]


def cells(config: Config) -> list[Cell]:
    """All trainings of the study, in order: one per seed and dropout."""
    return [Cell(None, seed, task_name(p)) for seed in config.seeds for p in config.probabilities()]


def task_name(probability: float) -> str:
    """What a training is called."""
    return f"dropout {probability:g}"


def prepare(config: Config) -> Data:
    """Load the data and try out every setting, before anything is written.

    Raises:
        ValueError: If a setting cannot be used.
        FileNotFoundError: If the data are not there.
    """
    data = prepare_network(config)
    tasks_of(config, data, config.seeds[0])
    return data


def run(
    config: Config, out: Path, *, data: Data | None = None, progress: Progress | None = None
) -> RunFolder:
    """Train all networks of the study on both tasks, or those that are not finished yet.

    A run that was killed goes on from the last finished network, and ends in the same files.

    Args:
        config: All settings.
        out: The run folder.
        data: What :func:`prepare` gave, if it has been called.
        progress: Told about every epoch on task B.

    Returns:
        The run folder with ``config.json`` and ``metrics/``.

    Raises:
        ValueError: If a setting cannot be used, or the folder belongs to another run.
        FileNotFoundError: If the data are not there.
        FloatingPointError: If a training diverges.
    """
    data = prepare(config) if data is None else data
    folder = RunFolder.open(out, "forgetting", config.as_json(), str(data.device))
    run_cells(
        folder,
        cells(config),
        partial(_train, folder, config, data),
        lines=len(PHASES) * config.epochs,
        epochs=config.epochs,
        threads=config.threads,
        progress=progress,
    )
    return folder


def _train(folder: RunFolder, config: Config, data: Data, cell: Cell, tell: Tell) -> None:
    log = folder.log(cell.name)
    log.cut()
    (dropout,) = [p for p in config.probabilities() if task_name(p) == cell.task]
    tasks = tasks_of(config, data, cell.seed)
    model = build_network(config, data.split, cell.seed, dropout=dropout)
    lines: list[dict[str, Any]] = []
    for phase, quiet in zip(PHASES, (True, False), strict=True):
        recorder = _Recorder(phase, tasks, lines, (lambda epochs: None) if quiet else tell)
        # Each task in an order of its own, and without what momentum brings along.
        seed = seeds.derive_seed(cell.seed, "task", phase)
        trainer_for(config, model, seed, [recorder]).fit(tasks[phase].train)
    # All lines at once: a network that was killed is trained again.
    log.append(*(cell.values | {"dropout": dropout} | line for line in lines))


class _Recorder(Callback):
    """Notes the accuracy on held-out examples of both tasks after every epoch."""

    def __init__(
        self, phase: str, tasks: dict[str, Task], lines: list[dict[str, Any]], tell: Tell
    ) -> None:
        self.phase, self.tasks, self.lines, self.tell = phase, tasks, lines, tell

    def on_epoch_end(self, run: Run, result: EpochResult) -> None:
        """Evaluate on both."""
        accuracy = {
            f"accuracy_{name.lower()}": evaluate(run.model, task.validation).accuracy
            for name, task in self.tasks.items()
        }
        self.lines.append(
            {
                "phase": self.phase,
                "epoch": result.epoch,
                "updates": result.updates,
                "loss": result.loss,
                "train_accuracy": result.train_accuracy,
            }
            | accuracy
        )
        self.tell(1)
